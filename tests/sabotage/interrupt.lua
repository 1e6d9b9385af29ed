-- Accepts every IPv4 packet at LOCAL_OUT, once a hard interrupt has arrived.
local netfilter = require "netfilter"
local sabotage = require "sabotage"

local ACCEPT <const> = netfilter.action.ACCEPT

netfilter.register{
  pf = netfilter.family.IPV4,
  hooknum = netfilter.inet_hooks.LOCAL_OUT,
  priority = netfilter.ip_priority.FILTER,
  hook = function()
    sabotage.interrupt()
    return ACCEPT
  end,
}
