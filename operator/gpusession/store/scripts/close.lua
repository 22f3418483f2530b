-- A client wishes the end of its Session.
-- KEYS[1] the events  [2] the deadlines  [3] the record  [4] its tokens
-- ARGV    uid, token digest
-- Returns the answer.
-- Atomic: a wish must not make a record anew that goes between look and write.
-- include clock
-- include record
-- include events
-- include tokens
local uid, digest = unpack(ARGV)
local answer = admit(read(KEYS[3], {'state', 'rev', 'cap'}), KEYS[4], digest)
if answer == 'ok' then
  redis.call('HSET', KEYS[3], 'close', 1)
  redis.call('ZADD', KEYS[2], 'LT', now, uid)
  emit(KEYS[1], 'close', uid)
end
return answer
