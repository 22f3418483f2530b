-- The ways to a record beside its uid. They expire with it, a user's set with the last of them.
local function enter_name(key, uid, ends, is_new)
  local namesake = redis.call('GET', key)
  if is_new or not namesake or namesake == uid then
    redis.call('SET', key, uid, 'PXAT', ends)
  end
end

local function enter_user(key, uid, ends)
  redis.call('SADD', key, uid)
  redis.call('PEXPIREAT', key, ends, 'NX')
  redis.call('PEXPIREAT', key, ends, 'GT')
end
