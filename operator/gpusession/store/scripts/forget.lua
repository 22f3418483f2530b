-- Remove a Session's record and everything that leads to it: the last step of an end.
-- KEYS[1] the record  [2] its tokens  [3] the deadlines  [4] the events
--         beyond these: the name's and the user's entry, which only the record knows
-- ARGV    uid, prefix of names, prefix of users
-- Returns 1, or 0 if there was no record.
-- Atomic: a Session of the same name that is opened between keeps its own entries.
-- include record
-- include events
local uid = ARGV[1]
local whose = read(KEYS[1], {'ns', 'name', 'user'})
redis.call('ZREM', KEYS[3], uid)
redis.call('UNLINK', KEYS[2])
if redis.call('UNLINK', KEYS[1]) == 0 then
  return 0
end
if whose then
  local name = ARGV[2] .. whose.ns .. '/' .. whose.name
  if redis.call('GET', name) == uid then
    redis.call('UNLINK', name)
  end
  redis.call('SREM', ARGV[3] .. whose.user, uid)
end
emit(KEYS[4], 'gone', uid)
return 1
