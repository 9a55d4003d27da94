#!lua flags=allow-oom
-- Write or remove a small document, with its audit records, if it is what the caller supposes.
--
-- KEYS: store, items of the kind, marks of kinds, audit, audit by experiment. ARGV: epoch; audit sequence supposed to be the last; kind;
-- channel; who tells; packed {key, expected, value, records}; expected and value are lists: empty for none.
-- Answers {'OK'}, {'IS', found or nothing}, {'MOVED ON'}, {'EPOCH', found}. Again: IS.

local found = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
if found[1] ~= ARGV[1] then
  return {'EPOCH', found[1] or ''}
end
local put = cmsgpack.unpack(ARGV[6])
local key, expected, value, records = put[1], put[2], put[3], put[4]
local now = redis.call('HGET', KEYS[2], key)
if (now or nil) ~= expected[1] then
  return {'IS', now}
end
if #records > 0 and (found[2] or '0') ~= ARGV[2] then
  return {'MOVED ON'}
end
if value[1] then
  redis.call('HSET', KEYS[2], key, value[1])
else
  redis.call('HDEL', KEYS[2], key)
end
write_audit(KEYS[1], KEYS[4], KEYS[5], records)
redis.call('ZADD', KEYS[3], redis.call('HINCRBY', KEYS[1], 'saved', 1), ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return {'OK'}
