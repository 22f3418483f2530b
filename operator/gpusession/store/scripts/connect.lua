-- A client has opened a connection: a beat, and one more to count.
-- KEYS[1] the events  [2] the deadlines  [3] the record  [4] its tokens  [5] the gateway's uids
-- ARGV    gateway, number of the connection, uid, token digest, ms to keep the gateway's uids
-- Returns the answer; where it is ok or returned also ns, name, per, ms until the token expires,
--         state, why, until.
-- Atomic: a disconnect at another gateway between beat and count would see nobody left.
-- include clock
-- include record
-- include events
-- include tokens
-- include beat
-- include connections
local gateway, own, uid, digest, keep = unpack(ARGV)
local key = KEYS[3]
local record = read(key, {'ns', 'name', 'per', unpack(BEATEN)})
local answer, expires = admit(record, KEYS[4], digest)
if not expires then
  return {answer}
end
expires = slide(record, KEYS[4], digest, expires)
answer = beat(uid, key, record, gateway, BEAT_RETURNS)
redis.call('HSET', key, 'dc', 0)
redis.call('HSET', key, connection(gateway, own), 1)
redis.call('SADD', KEYS[5], uid)
redis.call('PEXPIRE', KEYS[5], keep)
local after = redis.call('HMGET', key, 'state', 'why', 'until')
return {
  answer, record.ns, record.name, record.per, expires - now, after[1], after[2],
  number(after[3]) or 0,
}
