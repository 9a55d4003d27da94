-- Replace what is granted of one account, if it is what the caller supposes. KEYS: meta, grants. ARGV: epoch, account, supposed ('0' for
-- none), afterwards. Answers {'OK'}, {'IS', found} or {'EPOCH', found}. Again: IS, and what was granted is spent by nobody.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch ~= ARGV[1] then
  return {'EPOCH', epoch or ''}
end
local found = redis.call('HGET', KEYS[2], ARGV[2]) or '0'
if found ~= ARGV[3] then
  return {'IS', found}
end
if found ~= ARGV[4] then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
end
return {'OK'}
