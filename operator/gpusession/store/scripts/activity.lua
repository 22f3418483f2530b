-- A client did something: a beat that also moves the idle timeout.
-- KEYS[1] the events  [2] the deadlines  [3] the record  [4] its tokens
-- ARGV    gateway, uid, token digest, ms for which the client will be busy without a word
-- Returns the answer.
-- Atomic: of a returning client and a claim exactly one wins.
-- include clock
-- include record
-- include events
-- include tokens
-- include beat
local RETURNS = {HeartbeatLost = true, Disconnected = true, Idle = true}
local gateway, uid, digest, busy = unpack(ARGV)
local record = read(KEYS[3], {'busy', unpack(BEATEN)})
local answer, expires = admit(record, KEYS[4], digest)
if not expires then
  return answer
end
slide(record, KEYS[4], digest, expires)
redis.call('HSET', KEYS[3], 'act', now)
if tonumber(busy) > 0 then
  redis.call('HSET', KEYS[3], 'busy', math.max(record.busy, now + busy))
end
return beat(uid, KEYS[3], record, gateway, RETURNS)
