-- How every script reads a record.
local TEXT = {state = true, ns = true, name = true, user = true, node = true, why = true, sig = true}

-- A time, duration or count as we write them; nil for anything else. The year 10000 and later is
-- damage too, for no reader could tell it.
local function number(value)
  local parsed = tonumber(value or nil)
  if parsed and parsed >= 0 and parsed < 253402300800000 then
    return parsed
  end
end

-- The named fields as a table; nil where the record is missing, or not whole as far as was asked.
local function read(key, fields)
  local values = redis.pcall('HMGET', key, unpack(fields))  -- an error has no values either
  local record = {}
  for i = 1, #fields do
    local field, value = fields[i], values[i]
    if not TEXT[field] then
      value = number(value)
    end
    if not value then
      return nil
    end
    record[field] = value
  end
  return record
end
