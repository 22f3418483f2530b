-- Take the one right to end a Session, or to let its end begin.
-- KEYS[1] the record  [2] the deadlines  [3] the events  [4] the tick
-- ARGV    uid, state to reach (pending or releasing), why, grace, counter as seen ('' = any),
--         our last tick and who wrote it
-- Returns won, returned (it was heard since), missing, or rewound: this is not the server, or
--         not the state of it, on which the claim was judged.
-- Atomic: of a claim and a returning client exactly one wins, so look and write are one.
-- include clock
-- include record
-- include events
local LEASE = 30000
local RANK = {active = 0, pending = 1, releasing = 2, gone = 3}
local uid, to, why, grace, counter, number, writer = unpack(ARGV)
local n, by = unpack(redis.call('HMGET', KEYS[4], 'n', 'by'))
if by ~= writer or (tonumber(n or nil) or 0) < tonumber(number) then
  return 'rewound'
end
local record = read(KEYS[1], {'state', 'n'})
local rank = record and RANK[record.state]
if not rank then
  return 'missing'
elseif rank >= RANK[to] then
  return 'won'
elseif rank == 0 and counter ~= '' and tonumber(counter) ~= record.n then
  return 'returned'
end
if to == 'pending' then
  local ends = now + grace
  redis.call('HSET', KEYS[1], 'state', to, 'why', why, 'until', ends)
  redis.call('ZADD', KEYS[2], ends, uid)
  emit(KEYS[3], 'pending', uid, 'why', why, 'until', ends)
else
  redis.call('HSET', KEYS[1], 'state', to, 'why', why)
  redis.call('ZADD', KEYS[2], 'NX', now + LEASE, uid)
  emit(KEYS[3], 'ending', uid, 'why', why)
end
return 'won'
