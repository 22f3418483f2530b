-- List gateways whose lease is over.
-- KEYS[1] the gateways
-- ARGV    how many at most
-- Returns their ids.
-- Atomic: the lease ends by the server's clock, so the clock is read with the list.
-- include clock
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
