-- Put a new token in the place of an old one, which lives on for a moment.
-- KEYS[1] the record  [2] its tokens  [3] the events
-- ARGV    uid, old token digest, new token digest
-- Returns the answer, and ms until the new token expires.
-- Atomic: a crash between the two writes would leave the client with none, or with two.
-- include clock
-- include record
-- include tokens
-- include events
local uid, old, new = unpack(ARGV)
local record = read(KEYS[1], {'state', 'rev', 'cap'})
local answer, stored = admit(record, KEYS[2], old)
if not stored then
  return {answer, 0}
end
local expires = math.min(now + LIFE, record.cap)
redis.call('HSET', KEYS[2], old, -math.min(math.abs(stored), now + OVERLAP))
grant(record, KEYS[2], new, expires)
emit(KEYS[3], 'rotated', uid, 'digest', old)  -- whoever has verified it must not put it back
return {answer, math.max(expires - now, 0)}
