-- Sort a user's uids; those without a record are dropped from the user's set.
-- KEYS[1] the user's uids, and then the records, at most 200
-- ARGV    user, namespace ('' = any), and then the uids
-- Returns the uids that are the user's, in that namespace.
-- Atomic: a record opened between look and removal would lose its place in the set.
-- include record
local found = {}
for i = 3, #ARGV do
  local record = read(KEYS[i - 1], {'user', 'ns'})
  if not record then
    redis.call('SREM', KEYS[1], ARGV[i])
  elseif record.user == ARGV[1] and (ARGV[2] == '' or record.ns == ARGV[2]) then
    found[#found + 1] = ARGV[i]
  end
end
return found
