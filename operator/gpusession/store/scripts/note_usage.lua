-- Note what an agent saw of the GPUs of some Sessions.
-- KEYS    the records, at most 200
-- ARGV    for each, 1 if its GPU was busy, else 0
-- Returns how many records there were.
-- Atomic: a report must not make a record anew that goes between look and write.
-- include clock
-- include record
local GAP = 180000  -- three reports: beyond that nobody watched
local noted = 0
for i, key in ipairs(KEYS) do
  local record = read(key, {'n', 'gpuseen', 'gpusince'})
  if record then
    noted = noted + 1
    local since = math.min(record.gpusince, now)
    if now - record.gpuseen > GAP then
      since = now
    end
    redis.call('HSET', key, 'gpuseen', now, 'gpusince', since)
    if ARGV[i] == '1' then
      redis.call('HSET', key, 'gpu', now, 'n', record.n + 1)
    end
  end
end
return noted
