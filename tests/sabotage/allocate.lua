-- Accepts every IPv4 packet at LOCAL_OUT, and allocates with GFP_KERNEL.
local netfilter = require "netfilter"
local sabotage = require "sabotage"

local ACCEPT <const> = netfilter.action.ACCEPT

netfilter.register{
  pf = netfilter.family.IPV4,
  hooknum = netfilter.inet_hooks.LOCAL_OUT,
  priority = netfilter.ip_priority.FILTER,
  hook = function()
    sabotage.allocate()
    return ACCEPT
  end,
}
