#!lua flags=allow-oom
-- Let an experiment's keys belong to this life of the store, if they belong to what the caller saw. KEYS: meta. ARGV: epoch seen ('' for
-- none), epoch, term that has begun last.

if (redis.call('HGET', KEYS[1], 'epoch') or '') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2])
  at_least(KEYS[1], 'term', tonumber(ARGV[3]))
end
