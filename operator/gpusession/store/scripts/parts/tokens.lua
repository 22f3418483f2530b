-- Needs clock and record. A token's digest leads to when it expires, in ms; a rotated one's
-- is written negative, for it never slides.
local LIFE, SLIDE_BELOW, OVERLAP, MOST, KEEP = 1800000, 1500000, 60000, 64, 86400000

-- 'ok' and when the token expires, or why it opens nothing. Needs state, rev, cap.
local function admit(record, tokens, digest)
  if not record then
    return 'missing'
  elseif record.rev > 0 then
    return 'revoked'
  end
  local stored = tonumber(redis.pcall('HGET', tokens, digest) or nil)
  if not stored then
    return 'token_unknown'
  elseif math.abs(stored) <= now then
    return 'token_expired'
  elseif record.state == 'releasing' or record.state == 'gone' then
    return 'ending'
  end
  return 'ok', stored
end

-- Move the expiry on when little is left, never beyond the cap; gives when it expires.
local function slide(record, tokens, digest, stored)
  local later = math.min(now + LIFE, record.cap)
  if stored > 0 and stored - now < SLIDE_BELOW and later > stored then
    redis.call('HSET', tokens, digest, later)
    return later
  end
  return math.abs(stored)
end

-- Write a digest; what has expired goes, and of too many the one that would go first.
local function grant(record, tokens, digest, expires)
  redis.call('HDEL', tokens, digest)
  local all, left, first, soonest = redis.call('HGETALL', tokens), 0, nil, nil
  for i = 1, #all, 2 do
    local ends = math.abs(tonumber(all[i + 1]) or 0)
    if ends <= now then
      redis.call('HDEL', tokens, all[i])
    else
      left = left + 1
      if not first or ends < soonest then
        first, soonest = all[i], ends
      end
    end
  end
  if left >= MOST then
    redis.call('HDEL', tokens, first)
  end
  redis.call('HSET', tokens, digest, expires)
  redis.call('PEXPIREAT', tokens, record.cap + KEEP)
end
