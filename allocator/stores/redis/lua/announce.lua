-- Note that the cells of experiments changed. KEYS: store, changed, announced. ARGV: epoch, channel to tell it on or '', who tells, packed
-- list of {uid, number of its changes}. Again: what was noted is known, and no mark moves.

if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return
end
local new = {}
for _, change in ipairs(cmsgpack.unpack(ARGV[4])) do
  if redis.call('HGET', KEYS[3], change[1]) ~= whole(change[2]) then
    new[#new + 1] = change
  end
end
if #new > 0 then
  local mark = redis.call('HINCRBY', KEYS[1], 'changed', 1)
  for _, change in ipairs(new) do
    redis.call('ZADD', KEYS[2], mark, change[1])
    redis.call('HSET', KEYS[3], change[1], whole(change[2]))
  end
end
if ARGV[2] ~= '' then
  redis.call('PUBLISH', ARGV[2], ARGV[3]) -- also when somebody else has noted it: perhaps without telling
end
