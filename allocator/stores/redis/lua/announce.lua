-- Tell that the cells of experiments changed. KEYS: store, changed, announced. ARGV: epoch, channel, who tells, packed list of {uid, number
-- of its changes}. Again: what was told is known, and no mark moves.

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
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
