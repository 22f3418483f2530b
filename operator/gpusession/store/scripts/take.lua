-- Take one token from each of some buckets, or from none.
-- KEYS    the buckets: each holds until when, in ms, its tokens are spoken for
-- ARGV    for each bucket, ms in which one token falls into it, ms in which it fills from empty
-- Returns ms to wait until all have one; 0 if they were taken.
-- Atomic: two that look at the last token must not both take it.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local spoken, wait = {}, 0
for i, key in ipairs(KEYS) do
  local step, depth = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local before = tonumber(redis.call('GET', key) or nil) or 0
  -- Never further ahead than a full burst: the clock may have been moved back.
  spoken[i] = math.min(math.max(before, now), now + depth) + step
  wait = math.max(wait, spoken[i] - depth - now)
end
if wait > 0 then
  return math.ceil(wait)
end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.3f', spoken[i]), 'PX', math.ceil(spoken[i] - now))
end
return 0
