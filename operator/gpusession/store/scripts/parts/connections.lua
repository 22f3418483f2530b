-- A record holds each open connection as a field of its own, so that to count one twice, or to
-- take it away twice, is the same as once.
local function connection(gateway, number)
  return 'c:' .. gateway .. ':' .. number
end

-- The fields of connections, at one gateway or at all.
local function connections(key, gateway)
  local start = gateway and connection(gateway, '') or 'c:'
  local found = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #start) == start then
      found[#found + 1] = field
    end
  end
  return found
end
