-- Have records looked at now that wait, and cut leases of gateways that reach too far ahead.
-- KEYS[1] the deadlines  [2] the gateways
-- ARGV    how many records at most, longest lease of a gateway in ms
-- Returns how many records still waited.
-- Atomic: a record that is forgotten between look and write would come back.
-- include clock
local function cut(key, latest)
  local beyond = string.format('(%.0f', latest)
  local found = redis.call('ZRANGEBYSCORE', key, beyond, '+inf', 'LIMIT', 0, ARGV[1])
  for _, member in ipairs(found) do
    redis.call('ZADD', key, latest, member)
  end
  return #found
end

cut(KEYS[2], now + ARGV[2])
return cut(KEYS[1], now)
