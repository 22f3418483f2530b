-- Write a Session's state into its record.
-- KEYS[1] the record  [2] the events
-- ARGV    uid, state, why ('' leaves it as it is)
-- Returns 1, or 0 if there is no record.
-- Atomic: a record that goes between look and write must not come back as a stump.
-- include events
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local before, state, why = redis.call('HGET', KEYS[1], 'state'), ARGV[2], ARGV[3]
redis.call('HSET', KEYS[1], 'state', state)
if why ~= '' then
  redis.call('HSET', KEYS[1], 'why', why)
end
if before ~= state and (state == 'releasing' or state == 'gone') then
  emit(KEYS[2], 'ending', ARGV[1], 'why', redis.call('HGET', KEYS[1], 'why') or '')
end
return 1
