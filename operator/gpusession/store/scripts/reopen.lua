-- Let a Session whose end was claimed be Active again, as if just heard and just used.
-- KEYS[1] the record  [2] the deadlines  [3] the events
-- ARGV    uid
-- Returns 1 if it is active now, 0 if there is no record or its end is over.
-- Atomic: a claim that comes between must not be undone unseen; the counter moves with it.
-- include clock
-- include record
-- include events
local record = read(KEYS[1], {'state', 'n'})
if not record or record.state == 'gone' then
  return 0
elseif record.state ~= 'active' then
  redis.call('HSET', KEYS[1], 'state', 'active', 'why', '', 'until', 0, 'hb', now, 'act', now,
    'dc', 0, 'n', record.n + 1)
  redis.call('ZADD', KEYS[2], 'LT', now, ARGV[1])
  emit(KEYS[3], 'restored', ARGV[1])
end
return 1
