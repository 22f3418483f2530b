-- Needs clock and record. What this server may have lost: a restart, an older copy and a lagging
-- replica all show themselves as another process or another history than at the last tick.
local function identity(info)
  local run, history = string.match(info, 'run_id:(%w+)'), string.match(info, 'master_replid:(%w+)')
  return (run or '') .. ':' .. (history or '')
end

-- When the last loss was found; now, as long as nobody has looked at the server as it is.
-- Asks the server who it is where no INFO is given.
local function lost_at(tick, info)
  local id, found = unpack(redis.call('HMGET', tick, 'id', 'lost'))
  if id ~= identity(info or redis.call('INFO', 'server', 'replication')) then
    return now
  end
  return math.min(number(found) or now, now)
end
