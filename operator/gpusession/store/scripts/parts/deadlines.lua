-- Needs clock and record. When a record is to be looked at, and why.
local WATCHED = {
  'state', 'hb', 'first', 'per', 'hbt', 'act', 'busy', 'gpu', 'sig', 'idt', 'dc', 'dcg', 'cap',
  'until', 'close', 'rev',
}

-- The deadlines of an active record in the order of precedence, as pairs of reason and ms,
-- and from when on its beat is late.
local function deadlines(r)
  local all, late = {}, nil
  local function add(why, at)
    all[#all + 1] = {why, at}
  end
  if r.rev > 0 then add('Revoked', now) end
  if r.close > 0 then add('ExplicitClose', now) end
  add('LifetimeExceeded', r.cap)
  if r.dc > 0 then add('Disconnected', r.dc + r.dcg) end
  if r.hbt > 0 then
    local lost = math.max(r.hb + r.hbt, r.first)
    add('HeartbeatLost', lost)
    late = lost
    if r.hbt >= 2 * r.per then
      late = math.min(lost, math.max(r.hb + 1.5 * r.per, r.first - 0.5 * r.hbt))
    end
  end
  if r.idt > 0 then
    local gpu = string.find(r.sig, 'GPU', 1, true) and r.gpu or 0
    add('Idle', math.max(r.act, r.busy, gpu) + r.idt)
  end
  return all, late
end

-- What to say of a record, why, and when to look again: no kind is nothing to say, no time a lease.
local function look(record)
  if record.state == 'pending' and record['until'] > now then
    return nil, nil, record['until']
  elseif record.state ~= 'active' then
    return 'due', 'claim', nil
  end
  local all, late = deadlines(record)
  local soonest = math.huge
  for _, deadline in ipairs(all) do
    if deadline[2] <= now then
      return 'due', deadline[1], nil
    end
    soonest = math.min(soonest, deadline[2])
  end
  if record.dc > 0 or (late and late <= now) then
    return 'late', '', soonest
  end
  return nil, nil, math.min(soonest, late or soonest)
end
