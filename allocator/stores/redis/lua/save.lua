#!lua flags=allow-oom
-- Write one experiment, if its stored version is the one expected: its record, its audit entries (to be chained afterwards), and what
-- is settled.
--
-- KEYS: meta, records, pending, open, settled, buckets. ARGV: epoch; token of the intent; term of the planner ('' for a person); term
-- that has begun last; number of the last entry chained; packed {name, version expected ('' for none), version, document, entries,
-- last bucket to settle ('' for nothing), coarsen}.
--
-- Answers {'OK', last entry before, last entry, changes, settled buckets whose masks may be forgotten}, {'EPOCH', found}, {'CANCELLED'},
-- {'TERM', of whom}, {'VERSION', stored, '' for none}, {'REFUSED', why}. Nothing is written but for OK. Again: VERSION.

local found = redis.call('HMGET', KEYS[1], 'epoch', 'cancelled', 'term', 'entries', 'trimmed', 'through', 'changes')
if found[1] ~= ARGV[1] then
  return {'EPOCH', found[1] or ''}
end
if tonumber(ARGV[2]) <= tonumber(found[2] or 0) then
  return {'CANCELLED'}
end
if ARGV[3] ~= '' and tonumber(ARGV[3]) < tonumber(found[3] or 0) then
  return {'TERM', found[3]}
end
local save = cmsgpack.unpack(ARGV[6])
local name, expected, version, document, entries, through, coarsen = unpack(save)
local stored = redis.call('HGET', KEYS[2], 'v ' .. name) or ''
if stored ~= expected then
  return {'VERSION', stored}
end

local changes = tonumber(found[7] or 0)
local forgotten = {}
if through ~= '' then
  if found[6] and tonumber(found[6]) > through then
    through = tonumber(found[6])
  end
  local adds, gone = {}, {}
  local cells = redis.call('HGETALL', KEYS[4])
  for i = 1, #cells, 2 do
    local bucket, rest = string.match(cells[i], '^(%-?%d+) (.*)$')
    if tonumber(bucket) <= through then
      local coarse = coarsen > 0 and math.floor(tonumber(bucket) / coarsen) or 0
      adds[#adds + 1] = {KEYS[5], whole(coarse) .. ' ' .. rest, cells[i + 1]}
      gone[#gone + 1] = cells[i]
    end
  end
  local refused = add_all(adds)
  if refused then
    return {'REFUSED', refused}
  end
  in_chunks('HDEL', KEYS[4], gone)
  redis.call('HSET', KEYS[1], 'through', whole(through), 'coarsen', whole(coarsen))
  if #adds > 0 then
    changes = redis.call('HINCRBY', KEYS[1], 'changes', 1)
  end
  forgotten = redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', whole(through))
end

redis.call('HSET', KEYS[2], 'v ' .. name, version, 'd ' .. name, document)
at_least(KEYS[1], 'term', tonumber(ARGV[4]))
local chained = tonumber(ARGV[5])
local before = math.max(tonumber(found[4] or 0), chained) -- behind it only when this part of the store lost what it had
if #entries > 0 then
  for i, entry in ipairs(entries) do
    redis.call('HSET', KEYS[3], whole(before + i), entry)
  end
  redis.call('HSET', KEYS[1], 'entries', whole(before + #entries))
end
local old = {}
for number = tonumber(found[5] or 0) + 1, math.min(chained, before) do
  old[#old + 1] = whole(number)
end
if #old > 0 then
  in_chunks('HDEL', KEYS[3], old)
  redis.call('HSET', KEYS[1], 'trimmed', old[#old])
end
return {'OK', before, before + #entries, changes, forgotten}
