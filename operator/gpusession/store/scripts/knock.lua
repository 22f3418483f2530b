-- Note that somebody came with a token that is not known: the Session may be alive.
-- KEYS[1] the record
-- ARGV    ms for which a record that was lost may lack tokens that are good
-- Returns 1 if it is such a record, else 0.
-- Atomic: a knock must not make a record anew that goes between look and write.
-- include clock
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'doubt', now)
local lost = tonumber(redis.call('HGET', KEYS[1], 'lost') or nil) or 0
return lost > now - ARGV[1] and 1 or 0
