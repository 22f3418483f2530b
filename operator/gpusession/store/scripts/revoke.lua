-- Take every token of a Session from whoever has it, for good.
-- KEYS[1] the record  [2] its tokens  [3] the deadlines  [4] the events
-- ARGV    uid
-- Returns 1, or 0 if there is no record: then there is nothing that a token could open.
-- Atomic: a token granted between the two writes would outlive the revocation.
-- include clock
-- include events
redis.call('UNLINK', KEYS[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'rev', 1)
redis.call('ZADD', KEYS[3], 'LT', now, ARGV[1])
emit(KEYS[4], 'revoked', ARGV[1])
return 1
