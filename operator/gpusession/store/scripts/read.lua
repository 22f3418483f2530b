-- Read a record whole.
-- KEYS[1] the record  [2] when each gateway announced itself
-- Returns its fields and values in turn, the server's time in ms, and when the gateway that
-- brought its last beat announced itself, or nil.
-- Atomic: a time read apart would be older or newer than the beats it is compared with.
-- include clock
local gateway = redis.call('HGET', KEYS[1], 'gw') or ''
return {redis.call('HGETALL', KEYS[1]), now, redis.call('ZSCORE', KEYS[2], gateway)}
