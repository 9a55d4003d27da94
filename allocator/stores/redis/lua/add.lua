-- Count outcomes of one experiment: set the masks of their decisions and add their sums, if everything is as the caller supposes.
--
-- KEYS: meta, open, buckets, then the seen masks of each bucket. ARGV: epoch; last settled bucket supposed, '' for none; packed
-- {buckets, sums}: for each bucket {number, masks supposed ('' for none; one '' for none at all), masks afterwards}, for each sum
-- {field, addend}; then the nonces of each bucket, end to end. Masks are text: they have up to 62 bits.
--
-- Answers {'OK', changes}; {'SEEN', last settled bucket, packed masks found, by bucket} when something differs; {'EPOCH', found};
-- {'REFUSED', why}. Nothing is written but for OK. Again: the masks differ then, and the caller sees that all of it was counted.

local NONCE_BYTES = 8

local found = redis.call('HMGET', KEYS[1], 'epoch', 'through', 'changes')
if found[1] ~= ARGV[1] then
  return {'EPOCH', found[1] or ''}
end
local batch = cmsgpack.unpack(ARGV[3])
local buckets, sums = batch[1], batch[2]
local same = (found[2] or '') == ARGV[2]
local masks = {}
for b, bucket in ipairs(buckets) do
  local nonces, supposed, here = {}, bucket[2], {}
  for i = 1, #ARGV[3 + b] / NONCE_BYTES do
    nonces[i] = string.sub(ARGV[3 + b], (i - 1) * NONCE_BYTES + 1, i * NONCE_BYTES)
  end
  bucket[4] = nonces
  for first = 1, #nonces, CHUNK do
    local last = math.min(first + CHUNK - 1, #nonces)
    for i, mask in ipairs(redis.call('HMGET', KEYS[3 + b], unpack(nonces, first, last))) do
      local at = first + i - 1
      here[at] = mask or ''
      if here[at] ~= (supposed == '' and '' or supposed[at]) then
        same = false
      end
    end
  end
  masks[b] = here
end
if not same then
  return {'SEEN', found[2] or '', cmsgpack.pack(masks)}
end

local adds = {}
for i, sum in ipairs(sums) do
  adds[i] = {KEYS[2], sum[1], sum[2]}
end
local refused = add_all(adds)
if refused then
  return {'REFUSED', refused}
end
for b, bucket in ipairs(buckets) do
  local written = {}
  for i, nonce in ipairs(bucket[4]) do
    written[2 * i - 1], written[2 * i] = nonce, bucket[3][i]
  end
  in_chunks('HSET', KEYS[3 + b], written)
  redis.call('ZADD', KEYS[3], bucket[1], bucket[1])
end
if #sums > 0 then
  return {'OK', redis.call('HINCRBY', KEYS[1], 'changes', 1)}
end
return {'OK', tonumber(found[3] or 0)}
