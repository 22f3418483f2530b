-- Needs clock and record. When a record is to be looked at, and why.
local WATCHED = {
  'state', 'hb', 'dc', 'cap', 'act', 'per', 'hbt', 'first', 'idt', 'sig', 'dcg', 'busy', 'gpu',
  'close', 'until', 'rev',
}
local NEVER = math.huge

-- When the beats of an active record are lost, and from when on the next one is late.
local function heartbeat(r)
  if r.hbt == 0 then
    return NEVER, NEVER
  end
  local lost = math.max(r.hb + r.hbt, r.first)
  -- 1.25 is LATE_PERIODS of controller/sweeper.py.
  return lost, math.min(lost, math.max(r.hb, r.first - r.hbt) + 1.25 * r.per)
end

local function idle(r)
  if r.idt == 0 then
    return NEVER
  end
  local gpu = string.find(r.sig, 'GPU', 1, true) and r.gpu or 0
  return math.max(r.act, r.busy, gpu) + r.idt
end

-- What to say of a record, why, and when to look again: no kind is nothing to say, no time a lease.
local function look(r)
  if r.state == 'pending' and r['until'] > now then
    return nil, nil, r['until']
  elseif r.state ~= 'active' then
    return 'due', 'claim', nil
  end
  local lost, late = heartbeat(r)
  local idles, left = idle(r), r.dc > 0 and r.dc + r.dcg or NEVER
  local soonest = math.min(r.cap, left, lost, idles)
  if r.rev > 0 then return 'due', 'Revoked', nil end
  if r.close > 0 then return 'due', 'ExplicitClose', nil end
  if soonest > now then
    if r.dc > 0 or late <= now then
      return 'late', '', soonest
    end
    return nil, nil, math.min(soonest, late)
  end
  if r.cap <= now then return 'due', 'LifetimeExceeded', nil end
  if left <= now then return 'due', 'Disconnected', nil end
  if lost <= now then return 'due', 'HeartbeatLost', nil end
  return 'due', 'Idle', nil
end
