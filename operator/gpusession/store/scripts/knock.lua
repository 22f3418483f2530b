-- Note that somebody came with a token that is not known: the Session may be alive.
-- KEYS[1] the record
-- Returns ok, or missing.
-- Atomic: a knock must not make a record anew that goes between look and write.
-- include clock
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 'missing'
end
redis.call('HSET', KEYS[1], 'doubt', now)
return 'ok'
