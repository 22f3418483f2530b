-- Health of a Session for Argo CD: resource.customizations.health.gpusession.dev_Session in
-- ConfigMap argocd-cm. `obj` is the Session; what is returned is {status, message}.
local health = { status = "Progressing", message = "the controller has not seen it yet" }
local status = obj.status
if status == nil or status.phase == nil then
  return health
end

local function condition(kind)
  for _, each in ipairs(status.conditions or {}) do
    if each.type == kind then
      return each
    end
  end
  return {}
end

local function told(kind)
  local found = condition(kind)
  return (found.reason or "") .. ": " .. (found.message or "")
end

-- What waits for a human and not for time.
local stuck = {
  PodNotManaged = true, PodInUse = true, SharedNotSupported = true, DeviceNotObservable = true,
  StillHeld = true, NotObservable = true, AgentRefused = true, KeyRefused = true,
}

-- What is no fault of the Session: expiry that waits while most are silent, and another Pod that
-- comes in place of its own.
local function notes()
  local found = ""
  for _, kind in ipairs({ "ExpiryPaused", "OwnerWillRecreate" }) do
    if condition(kind).status == "True" then
      found = found .. "; " .. kind .. ", " .. told(kind)
    end
  end
  return found
end

if status.phase == "Active" then
  health.status = "Healthy"
  health.message = "bound to its Pod on " .. (status.nodeName or "?") .. notes()
elseif status.phase == "Destroyed" then
  health = { status = "Healthy", message = "ended: " .. told("GPUReleased") .. notes() }
elseif status.phase == "Pending" then
  health.message = told("Ready")
  if stuck[condition("Ready").reason or ""] then
    health.status = "Degraded"
  end
elseif condition("GPUReleased").reason == "DestroyGrace" then
  health.message = "ends at " .. (status.destroyAfter or "?") .. " unless a client comes back: "
    .. (status.reason or "")
elseif status.phase == "PendingDestroy" then
  health.message = told("GPUReleased")
  for _, kind in ipairs({ "StateCleared", "GPUReleased" }) do
    if condition(kind).status ~= "True" and stuck[condition(kind).reason or ""] then
      health = { status = "Degraded", message = told(kind) }
    end
  end
end
return health
