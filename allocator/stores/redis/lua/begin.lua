#!lua flags=allow-oom
-- Begin a new life of the store: an operator has put it right. What is there stays. KEYS: store, known uids. ARGV: secret, epoch, format,
-- epoch that the caller knew. The epochs that it continues are remembered, so that other servers may follow. Again: nothing changes.

local found = redis.call('HMGET', KEYS[1], 'epoch', 'continues')
if found[1] ~= ARGV[2] then
  local continues = (found[2] or '') .. ' ' .. (found[1] or '') .. ' ' .. ARGV[4]
  redis.call('HSET', KEYS[1], 'secret', ARGV[1], 'epoch', ARGV[2], 'format', ARGV[3], 'continues', continues)
  redis.call('DEL', KEYS[2]) -- an experiment that is not there any more is no surprise from now on
end
