-- Write a Session's state into its record.
-- KEYS[1] the record
-- ARGV    state
-- Returns 1, or 0 if there is no record.
-- Atomic: a record that goes between look and write must not come back as a stump.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'state', ARGV[1])
return 1
