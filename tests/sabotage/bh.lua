-- Accepts every IPv4 packet at LOCAL_OUT, with bottom halves enabled for a while.
local netfilter = require "netfilter"
local sabotage = require "sabotage"

local ACCEPT <const> = netfilter.action.ACCEPT

netfilter.register{
  pf = netfilter.family.IPV4,
  hooknum = netfilter.inet_hooks.LOCAL_OUT,
  priority = netfilter.ip_priority.FILTER,
  hook = function()
    sabotage.bh()
    return ACCEPT
  end,
}
