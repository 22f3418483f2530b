-- Take back what a dead gateway had counted: its clients get a whole heartbeat threshold anew.
-- KEYS[1] the gateways  [2] the gateway's uids  [3] when each announced itself; beyond these
--         the records, which only [2] knows
-- ARGV    gateway, how many uids at most, prefix of records
-- Returns how many uids are left; 0 also where the gateway lives.
-- Atomic: a gateway that comes back between look and removal must keep its counts.
-- include clock
-- include record
-- include connections
local gateway, limit, prefix = unpack(ARGV)
local lease = tonumber(redis.call('ZSCORE', KEYS[1], gateway) or 0)
if lease > now then
  return 0
end
for _, uid in ipairs(redis.call('SPOP', KEYS[2], limit)) do
  local record = read(prefix .. uid, {'n'})
  if record then
    for _, field in ipairs(connections(prefix .. uid, gateway)) do
      redis.call('HDEL', prefix .. uid, field)
    end
    redis.call('HSET', prefix .. uid, 'hb', now, 'n', record.n + 1)
  end
end
redis.call('ZREM', KEYS[3], gateway)
local left = redis.call('SCARD', KEYS[2])
if left == 0 then
  redis.call('ZREM', KEYS[1], gateway)
end
return left
