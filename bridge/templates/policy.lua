-- Drops TCP and UDP packets to blocked ports, IPv4 and IPv6, on their way through this
-- host (FORWARD). Everything else passes.
-- resume("block", port) and resume("allow", port) change that while packets flow; both
-- return how many ports are blocked.
local netfilter = require "netfilter"

local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local TCP <const>, UDP <const> = 6, 17

-- What the policy knows: the callback reads it, and what resumes the script changes it.
local state = { blocked = { [9] = true }, count = 1 }

-- Called for each packet. A field that a packet does not have is nil: a ping has no port.
local function filter(skb)
  local port = skb:dport()
  if not state.blocked[port or 0] then return ACCEPT end
  local protocol = skb:protocol()
  if protocol == TCP or protocol == UDP then return DROP end
  return ACCEPT
end

netfilter.register{
  pf = netfilter.family.INET,               -- IPv4 and IPv6
  hooknum = netfilter.inet_hooks.FORWARD,   -- or PRE_ROUTING, LOCAL_IN, LOCAL_OUT, ...
  priority = netfilter.ip_priority.FILTER,  -- a lower one is asked earlier
  onerror = "accept",                       -- or "drop": where the callback fails
  hook = filter,
}

local function change(verb, port)
  if verb ~= "block" and verb ~= "allow" then error("resume takes block or allow, and a port") end
  if math.type(port) ~= "integer" then error("a port is an integer") end
  local wanted = verb == "block" or nil
  if state.blocked[port] == wanted then return end
  state.blocked[port] = wanted
  state.count = state.count + (wanted and 1 or -1)
end

-- The hook is in force from here on. yield waits for the next resume.
while true do
  change(coroutine.yield(state.count))
end
