-- Count a parcel of exposures of one experiment, once: a writer numbers its parcels, and the last number of each is remembered.
--
-- KEYS: meta, open, settled, the writer's last number. ARGV: epoch; number; seconds to remember it; packed cells: {bucket, the rest of
-- the field, four addends}. Those of settled buckets go to the settled cells. Answers {'OK', changes}, {'EPOCH', found}, {'REFUSED', why}.

local found = redis.call('HMGET', KEYS[1], 'epoch', 'through', 'coarsen', 'changes')
if found[1] ~= ARGV[1] then
  return {'EPOCH', found[1] or ''}
end
if tonumber(redis.call('GET', KEYS[4]) or 0) >= tonumber(ARGV[2]) then
  return {'OK', tonumber(found[4] or 0)}
end
local through, coarsen = tonumber(found[2] or '-inf'), tonumber(found[3] or 0)
local adds = {}
for _, cell in ipairs(cmsgpack.unpack(ARGV[4])) do
  local key, bucket = KEYS[2], cell[1]
  if found[2] and bucket <= through then
    key, bucket = KEYS[3], coarsen > 0 and math.floor(bucket / coarsen) or 0
  end
  for i = 0, 3 do
    if i == 0 or cell[3 + i] ~= '0' then
      adds[#adds + 1] = {key, whole(bucket) .. ' ' .. i .. ' ' .. cell[2], cell[3 + i]}
    end
  end
end
local refused = add_all(adds)
if refused then
  return {'REFUSED', refused}
end
redis.call('SET', KEYS[4], ARGV[2], 'EX', ARGV[3])
return {'OK', redis.call('HINCRBY', KEYS[1], 'changes', 1)}
