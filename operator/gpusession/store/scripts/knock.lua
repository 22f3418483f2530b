-- Hear somebody with a token that is not known. If data was lost lately it may be one that was
-- lost with it, and the Session alive; else it is a stranger, who keeps nothing alive.
-- KEYS[1] the record  [2] the tick
-- ARGV    ms after a loss for which tokens may come that are good, at least
-- Returns 1 if the token may be good, else 0.
-- Atomic: a knock must not make a record anew, and of it and a claim exactly one wins.
-- include clock
-- include record
-- include loss
local record = read(KEYS[1], {'n', 'hbt', 'lost'})
if not record then
  return 1  -- gone since, or damaged: that proves nothing
end
-- Whoever beats seldom comes once within its threshold.
local span = math.max(tonumber(ARGV[1]), record.hbt)
if now - math.max(math.min(record.lost, now), lost_at(KEYS[2])) >= span then
  return 0
end
redis.call('HSET', KEYS[1], 'doubt', now, 'n', record.n + 1)
return 1
