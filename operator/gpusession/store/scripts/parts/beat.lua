-- Needs clock, record and events. KEYS[1] the events, KEYS[2] the deadlines.
local BEATEN = {'state', 'rev', 'cap', 'hb', 'n', 'dc', 'why'}
local BEAT_RETURNS = {HeartbeatLost = true, Disconnected = true}
local LATE_BEAT = 1000  -- ms after a disconnect in which a beat may still be of the closed socket

-- A sign of life; the ends named in `returns` are called off by it, and then it says 'returned'.
local function beat(uid, key, record, gateway, returns)
  redis.call('HSET', key, 'hb', now, 'gw', gateway, 'n', record.n + 1)
  if record.state == 'pending' and returns[record.why] then
    redis.call('HSET', key, 'state', 'active', 'why', '', 'until', 0, 'dc', 0)
    redis.call('ZADD', KEYS[2], 'LT', now, uid)
    emit(KEYS[1], 'returned', uid)
    return 'returned'
  end
  if record.dc > 0 and (record.dc > now or now - record.dc > LATE_BEAT) then
    redis.call('HSET', key, 'dc', 0)
  end
  return 'ok'
end
