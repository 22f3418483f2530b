-- Make a Session's record whole: write what is missing, change no beat, take over the spec.
-- KEYS[1] the record  [2] the deadlines  [3] its name's uid  [4] the events  [5] its user's, if any
-- ARGV    uid, ns, name, user, node, state, lifetime, ms to keep the record beyond its cap,
--         initial delay, per, hbt, idt, sig, dcg, 1 if there must have been a record before,
--         why it ends and ms in which that may be called off, both of a new record that is pending
-- Returns 1 if there was no record, else 0.
-- Atomic: a beat between look and write would be overwritten by an older time.
-- include clock
-- include record
-- include events
-- include index
local created = 1 - redis.call('EXISTS', KEYS[1])
local grace = created * ARGV[17]
local delay, per, hbt = ARGV[9], ARGV[10], ARGV[11]
local function default(field, value)
  local stored = number(redis.call('HGET', KEYS[1], field))
  if not stored then
    stored = value
    redis.call('HSET', KEYS[1], field, value)
  end
  return stored
end
-- In the order of use: a small hash is searched from its beginning.
redis.call('HSETNX', KEYS[1], 'state', ARGV[6])
default('rev', 0)
local cap = now + ARGV[7]  -- counted from the Session, whose spec may change
redis.call('HSET', KEYS[1], 'cap', cap)
default('hb', now)
default('n', now)  -- never what a lost record had counted: a claim on that one must fail
default('dc', 0)
redis.call('HSETNX', KEYS[1], 'why', grace > 0 and ARGV[16] or '')
redis.call('HSETNX', KEYS[1], 'gw', '')
default('act', now)
default('until', grace > 0 and now + grace or 0)
-- Nobody can have kept a period that has only come with this spec: it counts from here.
local before = redis.call('HMGET', KEYS[1], 'per', 'hbt')
if before[1] ~= per or before[2] ~= hbt then
  redis.call('HSET', KEYS[1], 'first', now + delay + hbt)
end
if created == 0 and before[1] ~= per then emit(KEYS[4], 'heartbeat', ARGV[1], 'per', per) end
redis.call('HSET', KEYS[1], 'per', per, 'hbt', hbt, 'idt', ARGV[12], 'sig', ARGV[13], 'dcg', ARGV[14])
default('first', now + delay + hbt)
for _, field in ipairs({'busy', 'gpu', 'close', 'gpuseen', 'gpusince', 'doubt'}) do
  default(field, 0)
end
default('made', now)
default('lost', created * ARGV[15] * now)
for i, field in ipairs({'ns', 'name', 'user', 'node'}) do
  redis.call('HSETNX', KEYS[1], field, ARGV[i + 1])
end
local ends = cap + ARGV[8]
redis.call('PEXPIREAT', KEYS[1], ends)
redis.call('ZADD', KEYS[2], 'LT', now, ARGV[1])
enter_name(KEYS[3], ARGV[1], ends, created == 1)
if KEYS[5] and redis.call('HGET', KEYS[1], 'user') == ARGV[4] then
  enter_user(KEYS[5], ARGV[1], ends)
end
return created
