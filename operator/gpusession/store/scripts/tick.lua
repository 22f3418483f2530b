-- Count one look at this server, say which server it is, and note what it may have lost.
-- KEYS[1] the tick  [2] the gateways  [3] the deadlines
-- ARGV    who looks, how many lapsed gateways to name at most, 1 if who looks has looked before
-- Returns run id, replication id, role, time in ms, number and writer before, number now,
--         living gateways, ids of lapsed ones.
-- Atomic: the number, the clock and the identity must be those of one server at one moment.
-- include clock
-- include record
-- include loss
local info = redis.call('INFO', 'server', 'replication')
local n, by, id = unpack(redis.call('HMGET', KEYS[1], 'n', 'by', 'id'))
local before = tonumber(n or nil) or 0
local lost = lost_at(KEYS[1], info)
if not id and ARGV[3] == '0' and redis.call('EXISTS', KEYS[3]) == 0 then
  lost = 0  -- nothing is here, and we know of nothing that was
end
redis.call('HSET', KEYS[1], 'n', before + 1, 'by', ARGV[1], 'id', identity(info), 'lost', lost)
return {
  string.match(info, 'run_id:(%w+)') or '', string.match(info, 'master_replid:(%w+)') or '',
  string.match(info, 'role:(%w+)') or '', now, before, by or '', before + 1,
  redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', now), '+inf'),
  redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2]),
}
