-- Look at the records whose time has come, and lease those that somebody must act on.
-- KEYS[1] the deadlines; beyond it the records, which only [1] knows
-- ARGV    how many to look at, lease in ms, prefix of records
-- Returns how many were looked at, and for each to act on: uid, kind, why, node, gateway.
-- Atomic: a record that ends between look and lease would come back into the deadlines.
-- include clock
-- include record
-- include deadlines
local PAST = {'hb', 'act', 'gpu', 'dc', 'made', 'doubt', 'gpuseen', 'gpusince', 'lost'}
local AHEAD = {'first', 'busy', 'until'}
local limit, lease, prefix = unpack(ARGV)

-- What has happened in the future is from before the clock was moved back: it counts from now,
-- and what was to come after it comes so much sooner.
local function clamp(key, record)
  local back = 0
  for _, field in ipairs(PAST) do
    back = math.max(back, record[field] - now)
  end
  if back == 0 then
    return
  end
  for _, field in ipairs(PAST) do
    record[field] = math.min(record[field], now)
    redis.call('HSET', key, field, record[field])
  end
  for _, field in ipairs(AHEAD) do
    record[field] = math.max(0, record[field] - back)
    redis.call('HSET', key, field, record[field])
  end
end

local uids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit)
local found, scores = {}, {}
for i, uid in ipairs(uids) do
  local key = prefix .. uid
  local record = read(key, {'made', 'doubt', 'gpuseen', 'gpusince', 'lost', unpack(WATCHED)})
  local kind, why, again = 'missing', '', nil
  if record then
    clamp(key, record)
    kind, why, again = look(record)
  end
  if kind == 'late' then
    again = math.min(again, now + lease)  -- told again, to be counted for as long as it lasts
  end
  scores[2 * i - 1], scores[2 * i] = again or now + lease, uid
  if kind then
    local whose = record and redis.call('HMGET', key, 'node', 'gw') or {}
    found[#found + 1] = {uid, kind, why, whose[1] or '', whose[2] or ''}
  end
end
if #uids > 0 then
  redis.call('ZADD', KEYS[1], unpack(scores))
end
return {#uids, found}
