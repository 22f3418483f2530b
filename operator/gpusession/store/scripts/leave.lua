-- Give a gateway's lease up; one that leaves connections behind is taken apart as a dead one.
-- KEYS[1] the gateways  [2] the gateway's uids  [3] when each announced itself
-- ARGV    gateway
-- Returns how many uids it leaves behind.
-- Atomic: a connection counted between look and removal would never be taken back.
redis.call('ZREM', KEYS[3], ARGV[1])
local left = redis.call('SCARD', KEYS[2])
if left > 0 then
  redis.call('ZADD', KEYS[1], 0, ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return left
