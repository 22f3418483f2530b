-- A connection has ended.
-- KEYS[1] the events  [2] the deadlines  [3] the record  [4] the gateways  [5] the gateway's uids
-- ARGV    gateway, uid, 1 if the gateway saw the client go, else 0
-- Returns ok, or missing.
-- Atomic: two last connections that end at once at two gateways must not both see another left.
-- include clock
-- include record
-- include events
local gateway, uid, seen = unpack(ARGV)
local key, own = KEYS[3], 'c:' .. gateway

-- Whether anyone is still connected, as far as is known: one at a gateway that is gone may be.
local function anyone_left()
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'c:' and (number(all[i + 1]) or 0) > 0 then
      return true
    end
  end
  return false
end

local record = read(key, {'state', 'n', 'dc'})
if not record then
  redis.call('SREM', KEYS[5], uid)
  return 'missing'
end
local known = redis.call('HEXISTS', key, own) == 1
if redis.call('HINCRBY', key, own, -1) <= 0 then
  redis.call('HDEL', key, own)
  redis.call('SREM', KEYS[5], uid)
end
redis.call('HSET', key, 'n', record.n + 1)
-- No evidence: cut off, draining, a connection nobody counted, or an end that has begun.
local lease = tonumber(redis.call('ZSCORE', KEYS[4], gateway) or 0)
if seen == '1' and known and lease > now and record.state == 'active' and not anyone_left() then
  redis.call('HSET', key, 'dc', now)
  redis.call('ZADD', KEYS[2], 'LT', now, uid)
  emit(KEYS[1], 'disconnected', uid)
else
  redis.call('HSET', key, 'hb', now)
end
return 'ok'
