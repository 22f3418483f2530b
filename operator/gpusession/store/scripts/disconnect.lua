-- A connection has ended.
-- KEYS[1] the events  [2] the deadlines  [3] the record  [4] the gateways  [5] the gateway's uids
-- ARGV    gateway, number of the connection, uid, 1 if the gateway saw the client go, else 0
-- Returns ok, or missing.
-- Atomic: two last connections that end at once at two gateways must not both see another left.
-- include clock
-- include record
-- include events
-- include connections
local gateway, own, uid, seen = unpack(ARGV)
local key = KEYS[3]
local record = read(key, {'state', 'n', 'dc'})
if not record then
  redis.call('SREM', KEYS[5], uid)
  return 'missing'
end
local known = redis.call('HDEL', key, connection(gateway, own)) == 1
if #connections(key, gateway) == 0 then
  redis.call('SREM', KEYS[5], uid)
end
redis.call('HSET', key, 'n', record.n + 1)
-- No evidence: cut off, draining, a connection nobody counted, or an end that has begun.
local lease = tonumber(redis.call('ZSCORE', KEYS[4], gateway) or 0)
local alone = #connections(key) == 0  -- as far as is known: a dead gateway's count too
if seen == '1' and known and lease > now and record.state == 'active' and alone then
  redis.call('HSET', key, 'dc', now)
  redis.call('ZADD', KEYS[2], 'LT', now, uid)
  emit(KEYS[1], 'disconnected', uid)
elseif known or seen == '0' or record.dc == 0 then  -- else it is told again, and stands
  redis.call('HSET', key, 'hb', now)
end
return 'ok'
