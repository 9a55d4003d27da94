#!lua flags=allow-oom
-- Begin or renew the planner's term. KEYS: store, leader. ARGV: epoch, holder, milliseconds.
-- Answers {'OK', number of the term}, {'OTHER'} while somebody else's lasts, {'EPOCH', found}. Again: it lasts from then on.
--
-- A new number is at least the time in milliseconds, and larger than all before: a server that was made the master without knowing of
-- the last terms must not give their numbers to others.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch ~= ARGV[1] then
  return {'EPOCH', epoch or ''}
end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then
  return {'OTHER'}
end
if not holder then
  local now = redis.call('TIME')
  at_least(KEYS[1], 'term', math.max(tonumber(redis.call('HGET', KEYS[1], 'term') or 0) + 1, now[1] * 1000 + math.floor(now[2] / 1000)))
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'beat', 1)
return {'OK', redis.call('HGET', KEYS[1], 'term')}
