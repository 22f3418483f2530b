-- Put back a token that a gateway had seen verified before Redis lost it, or before Redis'
-- clock jumped over its time; by the gateway's own clock it is good.
-- KEYS[1] the record  [2] its tokens  [3] the tick
-- ARGV    token digest, ms until it expires, ms since it was verified
-- Returns the answer; token_unknown where nothing was lost since the verification.
-- Atomic: a revocation that comes between must win.
-- include clock
-- include record
-- include tokens
-- include loss
local digest, life, ago = unpack(ARGV)
local record = read(KEYS[1], {'state', 'rev', 'cap', 'made'})
local answer = admit(record, KEYS[2], digest)
-- Where neither record nor server is younger than the verification, the token was taken away.
local lost = answer == 'token_unknown' and math.max(record.made, lost_at(KEYS[3])) > now - ago
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
