-- Count one look at this server, and say which server it is.
-- KEYS[1] the tick  [2] the gateways
-- ARGV    who looks, how many lapsed gateways to name at most
-- Returns run id, replication id, role, time in ms, number and writer before, number now,
--         living gateways, ids of lapsed ones.
-- Atomic: the number, the clock and the identity must be those of one server at one moment.
-- include clock
local info = redis.call('INFO', 'server', 'replication')
local n, by = unpack(redis.call('HMGET', KEYS[1], 'n', 'by'))
local before = tonumber(n or nil) or 0
redis.call('HSET', KEYS[1], 'n', before + 1, 'by', ARGV[1])
return {
  string.match(info, 'run_id:(%w+)') or '', string.match(info, 'master_replid:(%w+)') or '',
  string.match(info, 'role:(%w+)') or '', now, before, by or '', before + 1,
  redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', now), '+inf'),
  redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2]),
}
