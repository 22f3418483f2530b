-- The server's own clock: `now` in ms. Numbers below 2^53 go to redis.call as they are, exactly.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
