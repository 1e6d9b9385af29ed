-- Drops packets from listed prefixes, IPv4 and IPv6, at FORWARD, unless a longer listed
-- prefix excepts them; everything else passes.
-- resume("block", prefix), resume("except", prefix), resume("remove", prefix) change
-- the list while packets flow and return how many prefixes it has. It starts empty.
local netfilter = require "netfilter"
local cidr = require "cidr"

local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local IPV6 <const> = netfilter.family.IPV6

local listed = cidr.new()

local function source(skb)
  if skb:family() == IPV6 then return skb:saddr() end
  return skb:u32(12)
end

netfilter.register{
  pf = netfilter.family.INET,
  hooknum = netfilter.inet_hooks.FORWARD,
  priority = netfilter.ip_priority.FILTER,
  hook = function(skb)
    return listed:lookup(source(skb)) and DROP or ACCEPT
  end,
}

local change = {
  block = function(prefix) return listed:add(prefix, true) end,
  except = function(prefix) return listed:add(prefix, false) end,
  remove = function(prefix) return listed:remove(prefix) end,
}

while true do
  local verb, prefix = coroutine.yield(#listed)
  if not change[verb] then error('resume takes "block", "except" or "remove"') end
  local _, reason = change[verb](prefix)
  if reason then error(reason) end
end
