-- Put back a token that a gateway had seen verified before Redis lost it, or before Redis'
-- clock jumped over its time; by the gateway's own clock it is good.
-- KEYS[1] the record  [2] its tokens
-- ARGV    token digest, ms until it expires, ms since it was verified
-- Returns the answer; token_unknown where the record is not younger than the verification.
-- Atomic: a revocation that comes between must win.
-- include clock
-- include record
-- include tokens
local digest, life, ago = unpack(ARGV)
local record = read(KEYS[1], {'state', 'rev', 'cap', 'made'})
local answer = admit(record, KEYS[2], digest)
-- A record as old as the verification has lost nothing: the token was taken from it.
local lost = answer == 'token_unknown' and record.made > now - ago
local jumped = answer == 'token_expired' and tonumber(redis.call('HGET', KEYS[2], digest)) > 0
if lost or jumped then
  local expires = math.min(now + math.min(tonumber(life), LIFE), record.cap)
  if expires > now then
    local rotated = tonumber(life) <= OVERLAP
    grant(record, KEYS[2], digest, rotated and -expires or expires)
  end
  return admit(record, KEYS[2], digest)
end
return answer
