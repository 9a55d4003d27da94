-- Make the store's secret and epoch, unless it has them: the first server wins. KEYS: store. ARGV: secret, epoch, format.
-- Answers {secret, epoch, format} as they are now.

if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'secret', ARGV[1], 'epoch', ARGV[2], 'format', ARGV[3])
end
return redis.call('HMGET', KEYS[1], 'secret', 'epoch', 'format')
