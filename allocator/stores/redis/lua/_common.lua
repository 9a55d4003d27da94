-- What several scripts use; it is put before each of them. Sums are never Lua numbers, which are exact up to 2^53 only: they come in as
-- text, HINCRBY adds them as 64-bit integers, and a sum that would not fit is refused by it.

local CHUNK = 2000 -- values in one command; Lua cannot spread many more

-- Carry out all additions {key, field, text of the addend}, or none: then why not.
local function add_all(adds)
  local before = {}
  for i, add in ipairs(adds) do
    before[i] = redis.call('HGET', add[1], add[2])
    local answer = redis.pcall('HINCRBY', add[1], add[2], add[3])
    if type(answer) == 'table' and answer.err then
      for j = i - 1, 1, -1 do
        if before[j] then
          redis.call('HSET', adds[j][1], adds[j][2], before[j])
        else
          redis.call('HDEL', adds[j][1], adds[j][2])
        end
      end
      return answer.err
    end
  end
end

-- A command on a list of values of any length.
local function in_chunks(command, key, values)
  for first = 1, #values, CHUNK do
    redis.call(command, key, unpack(values, first, math.min(first + CHUNK - 1, #values)))
  end
end

-- A whole number, as text.
local function whole(number)
  return string.format('%.0f', number)
end

local function at_least(key, field, number)
  if number > tonumber(redis.call('HGET', key, field) or 0) then
    redis.call('HSET', key, field, whole(number))
  end
end

-- Append sealed audit records {sequence, experiment, document, digest}.
local function write_audit(store, audit, by_experiment, records)
  for _, record in ipairs(records) do
    redis.call('HSET', audit, record[1], record[3])
    redis.call('ZADD', by_experiment, 0, record[2] .. '\0' .. string.format('%016d', record[1]))
    redis.call('HSET', store, 'sequence', record[1], 'digest', record[4])
  end
end
