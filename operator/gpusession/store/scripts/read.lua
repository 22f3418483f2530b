-- Read a record whole.
-- KEYS[1] the record
-- Returns its fields and values in turn, and the server's time in ms.
-- Atomic: a time read apart would be older or newer than the beats it is compared with.
-- include clock
return {redis.call('HGETALL', KEYS[1]), now}
