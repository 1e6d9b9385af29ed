-- Drops DNS questions (UDP port 53, IPv4 and IPv6) for listed names and the names
-- below them, at FORWARD; everything else passes, questions it cannot read too.
-- resume("block", name), resume("allow", name) change the list while packets flow;
-- both return how many names are listed. It starts empty.
local netfilter = require "netfilter"
local packet = require "packet"
local dns = require "dns"

local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local UDP <const>, PORT <const>, HEADER <const> = 17, 53, 8

local blocked, count = {}, 0

local function filter(skb)
  local protocol, offset = packet.transport(skb)
  if protocol ~= UDP or not offset or skb:u16(offset + 2) ~= PORT then return ACCEPT end
  if count == 0 then return ACCEPT end
  local name = dns.question(skb:string(offset + HEADER))
  if name and dns.listed(name, blocked) then return DROP end
  return ACCEPT
end

netfilter.register{
  pf = netfilter.family.INET,
  hooknum = netfilter.inet_hooks.FORWARD,
  priority = netfilter.ip_priority.FILTER,
  hook = filter,
}

local function change(list, name)
  name = dns.normal(name)
  if (blocked[name] or false) ~= list then
    blocked[name] = list or nil
    count = count + (list and 1 or -1)
  end
end

while true do
  local verb, name = coroutine.yield(count)
  if verb ~= "block" and verb ~= "allow" or not name then
    error('resume takes "block" or "allow", and a name')
  end
  change(verb == "block", name)
end
