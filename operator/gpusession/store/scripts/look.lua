-- See whether a token is good, and of what Session.
-- KEYS[1] the record  [2] its tokens
-- ARGV    token digest
-- Returns the answer; where it is ok also ns, name, user, state, why, until.
-- Atomic: facts of a record that was revoked between would be told to a stranger.
-- include clock
-- include record
-- include tokens
local FIELDS = {'state', 'rev', 'cap', 'ns', 'name', 'user', 'why', 'until'}
local record = read(KEYS[1], FIELDS)
local answer, expires = admit(record, KEYS[2], ARGV[1])
if not expires then
  return {answer}
end
return {
  answer, record.ns, record.name, record.user, record.state, record.why, record['until'],
}
