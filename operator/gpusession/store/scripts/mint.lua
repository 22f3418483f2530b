-- Give a Session one more token.
-- KEYS[1] the record  [2] its tokens
-- ARGV    token digest, ms to live
-- Returns the answer, and ms until the token expires.
-- Atomic: a token granted after a revocation would open what was closed.
-- include clock
-- include record
-- include tokens
local digest, life = unpack(ARGV)
local record = read(KEYS[1], {'state', 'rev', 'cap'})
if not record then
  return {'missing', 0}
elseif record.rev > 0 then
  return {'revoked', 0}
elseif record.state == 'releasing' or record.state == 'gone' then
  return {'ending', 0}
end
local expires = math.min(now + life, record.cap)
grant(record, KEYS[2], digest, expires)
return {'ok', math.max(expires - now, 0)}
