#!lua flags=allow-oom
-- After saves: chain their audit records, tell what was saved, and take back the announcement.
--
-- KEYS: store, audit, audit by experiment, chained, saved, intents, known uids. ARGV: epoch; token to take back, '' for none; audit
-- sequence supposed to be the last; channel; who tells; packed {ends, records, names, uids}: for each end {uid, its last entry chained}; for each
-- record {sequence, experiment, document, digest}.
--
-- Answers {'OK'}, {'MOVED ON'} when the chain ends elsewhere than supposed (then nothing was done), {'EPOCH', found}.
-- Again: MOVED ON, or for a call without records only another mark.

local found = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
if found[1] ~= ARGV[1] then
  return {'EPOCH', found[1] or ''}
end
local told = cmsgpack.unpack(ARGV[6])
local ends, records, names, uids = told[1], told[2], told[3], told[4]
if #records > 0 and (found[2] or '0') ~= ARGV[3] then
  return {'MOVED ON'}
end
for _, last in ipairs(ends) do
  redis.call('HSET', KEYS[4], last[1], last[2]) -- it changes with the chain only, so that it is what it was supposed to be
end
write_audit(KEYS[1], KEYS[2], KEYS[3], records)
if #names > 0 then
  local mark = redis.call('HINCRBY', KEYS[1], 'saved', 1)
  for _, name in ipairs(names) do
    redis.call('ZADD', KEYS[5], mark, name)
  end
  in_chunks('SADD', KEYS[7], uids)
  redis.call('PUBLISH', ARGV[4], ARGV[5])
end
if ARGV[2] ~= '' then
  redis.call('HDEL', KEYS[6], ARGV[2])
end
return {'OK'}
