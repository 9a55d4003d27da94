-- Experiments whose cells changed after a mark, as of one moment. KEYS: store, changed. ARGV: mark. Answers {mark now, uids, the latest
-- first}; of all experiments when the mark is ahead of the store, which then is older than it was.

local mark = tonumber(redis.call('HGET', KEYS[1], 'changed') or 0)
local since = tonumber(ARGV[1])
if since > mark then
  since = 0
end
return {mark, redis.call('ZREVRANGEBYSCORE', KEYS[2], '+inf', '(' .. whole(since))}
