-- Drops UDP and TCP packets to one port, IPv4 and IPv6, at FORWARD; the rest passes.
-- resume(port) chooses another port and returns the one before. It starts with 53.
local netfilter = require "netfilter"

local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local TCP <const>, UDP <const> = 6, 17

local port = 53

-- The port comes first: few packets have it, so that most need one look alone.
local function filter(skb)
  if skb:dport() ~= port then return ACCEPT end
  local protocol = skb:protocol()
  if protocol == UDP or protocol == TCP then return DROP end
  return ACCEPT
end

netfilter.register{
  pf = netfilter.family.INET,
  hooknum = netfilter.inet_hooks.FORWARD,
  priority = netfilter.ip_priority.FILTER,
  hook = filter,
}

while true do
  local new = coroutine.yield(port)
  port = math.tointeger(new) or error("resume takes a port number")
end
