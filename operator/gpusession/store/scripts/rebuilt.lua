-- Tell whether the records that this server may have lost are all there again.
-- KEYS[1] the tick
-- Returns 1 or 0.
-- Atomic: identity and tick must be those of one server at one moment.
-- include clock
-- include record
-- include loss
local lost = number(redis.call('HGET', KEYS[1], 'lost'))
local since = number(redis.call('HGET', KEYS[1], 'rebuilt'))
return lost and lost == since and lost_at(KEYS[1]) == lost and 1 or 0
