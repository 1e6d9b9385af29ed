-- Accepts every IPv4 packet at LOCAL_OUT, and leaks a block for each.
local netfilter = require "netfilter"
local sabotage = require "sabotage"

local ACCEPT <const> = netfilter.action.ACCEPT

netfilter.register{
  pf = netfilter.family.IPV4,
  hooknum = netfilter.inet_hooks.LOCAL_OUT,
  priority = netfilter.ip_priority.FILTER,
  hook = function()
    sabotage.leak()
    return ACCEPT
  end,
}
