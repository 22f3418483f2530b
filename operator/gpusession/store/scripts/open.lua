-- Make a Session's record whole: write every field that is missing, change none.
-- KEYS[1] the record
-- ARGV    ns, name, user, node, lifetime in ms, ms to keep the record beyond its cap
-- Returns 1 if there was no record, else 0.
-- Atomic: a beat between look and write would be overwritten by an older time.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local created = 1 - redis.call('EXISTS', KEYS[1])

local function number(field, default)
  local stored = tonumber(redis.call('HGET', KEYS[1], field) or nil)
  if not stored then
    stored = default
    redis.call('HSET', KEYS[1], field, string.format('%.0f', default))
  end
  return stored
end

for i, field in ipairs({'ns', 'name', 'user', 'node'}) do
  redis.call('HSETNX', KEYS[1], field, ARGV[i])
end
redis.call('HSETNX', KEYS[1], 'state', 'active')
number('hb', now)
number('act', now)
local cap = number('cap', now + ARGV[5])
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', cap + ARGV[6]))
return created
