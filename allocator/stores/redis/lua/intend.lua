#!lua flags=allow-oom
-- Announce saves before they are made, and claim the names of new experiments. What is announced and never finished is found and finished
-- by another server.
--
-- KEYS: store, names, intents, chained. ARGV: epoch; term of the planner ('' for a person); packed list of {name, uid, is it new}.
-- Answers {'OK', token, term that has begun last, last audit sequence, its digest, uids that have the names ('' for none), last entries
-- chained}; {'EPOCH', found}; {'TERM', of whom}. Again: another intent, which is finished in its time.

local found = redis.call('HMGET', KEYS[1], 'epoch', 'term', 'sequence', 'digest')
if found[1] ~= ARGV[1] then
  return {'EPOCH', found[1] or ''}
end
local term = tonumber(found[2] or 0)
if ARGV[2] ~= '' and tonumber(ARGV[2]) < term then
  return {'TERM', found[2]}
end
local owners, chained, announced = {}, {}, {}
for i, save in ipairs(cmsgpack.unpack(ARGV[3])) do
  local owner = redis.call('HGET', KEYS[2], save[1])
  if not owner and save[3] then
    redis.call('HSET', KEYS[2], save[1], save[2])
    owner = save[2]
  end
  owners[i] = owner or ''
  chained[i] = redis.call('HGET', KEYS[4], save[2]) or '0'
  announced[i] = {save[1], save[2]}
end
local token = redis.call('HINCRBY', KEYS[1], 'token', 1)
redis.call('HSET', KEYS[3], token, cmsgpack.pack({redis.call('TIME')[1], announced}))
return {'OK', token, found[2] or '0', found[3] or '0', found[4] or '', owners, chained}
