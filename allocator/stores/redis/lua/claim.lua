#!lua flags=allow-oom
-- Let a name belong to another uid, if it belongs to the one that the caller saw, which never wrote its experiment. KEYS: names. ARGV: name,
-- uid seen, uid. Answers the uid that has it now.

if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
return redis.call('HGET', KEYS[1], ARGV[1])
