-- Drops DNS questions (UDP port 53, IPv4 and IPv6) for listed names and the names
-- below them, at FORWARD; everything else passes, questions it cannot read too.
-- resume("block", name), resume("allow", name) change the list while packets flow;
-- both return how many names are listed. It starts empty.
local netfilter = require "netfilter"
local blocklist = require "blocklist"
local dns = require "dns"

local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local UDP <const>, PORT <const> = 17, 53

local blocked = blocklist.new()

local function filter(skb)
  if skb:dport() ~= PORT or skb:protocol() ~= UDP or #blocked == 0 then return ACCEPT end
  local message = skb:payload()
  local name = message and dns.question(message)
  if name and blocked:has(name) then return DROP end
  return ACCEPT
end

netfilter.register{
  pf = netfilter.family.INET,
  hooknum = netfilter.inet_hooks.FORWARD,
  priority = netfilter.ip_priority.FILTER,
  hook = filter,
}

while true do
  blocked:change(coroutine.yield(#blocked))
end
