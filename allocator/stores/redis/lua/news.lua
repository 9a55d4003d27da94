-- What was saved and put after a mark, as of one moment. KEYS: store, saved, marks of kinds, intents. ARGV: mark. Answers {mark now, names,
-- kinds, beat, epoch, unfinished intents, seconds since the epoch}; all names and kinds when the mark is ahead of the store.

local found = redis.call('HMGET', KEYS[1], 'saved', 'beat', 'epoch')
local mark = tonumber(found[1] or 0)
local since = tonumber(ARGV[1])
if since > mark then
  since = 0
end
local after = '(' .. whole(since)
local names = redis.call('ZRANGEBYSCORE', KEYS[2], after, '+inf')
local kinds = redis.call('ZRANGEBYSCORE', KEYS[3], after, '+inf')
return {mark, names, kinds, tonumber(found[2] or 0), found[3] or '', redis.call('HGETALL', KEYS[4]), redis.call('TIME')[1]}
