-- Accepts every packet, IPv4 and IPv6, at FORWARD. Nothing is dropped.
local netfilter = require "netfilter"

local ACCEPT <const> = netfilter.action.ACCEPT

netfilter.register{
  pf = netfilter.family.INET,
  hooknum = netfilter.inet_hooks.FORWARD,
  priority = netfilter.ip_priority.FILTER,
  hook = function() return ACCEPT end,
}
