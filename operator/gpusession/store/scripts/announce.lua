-- Renew a gateway's lease.
-- KEYS[1] the gateways  [2] the gateway's uids  [3] when each announced itself
-- ARGV    gateway, ms of the lease, ms to keep the uids
-- Returns 1 if the last lease still ran, else 0: then its connections count for nothing any more.
-- Atomic: the lease ends by the server's clock, so the clock is read with the write.
-- include clock
local before = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return before > now and 1 or 0
