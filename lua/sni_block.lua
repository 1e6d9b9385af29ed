-- Drops TLS ClientHellos (TCP port 443, IPv4 and IPv6) that ask for listed names and the
-- names below them, at FORWARD; everything else passes: a ClientHello whose name is
-- encrypted or not in its first segment, and what cannot be read, too.
-- resume("block", name), resume("allow", name) change the list while packets flow;
-- both return how many names are listed. It starts empty.
local netfilter = require "netfilter"
local packet = require "packet"
local dns = require "dns"
local tls = require "tls"

local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local TCP <const>, PORT <const>, HANDSHAKE <const> = 6, 443, 22

local blocked, count = {}, 0

-- Returns where the data of a TCP segment to the port is, if it begins a handshake.
local function handshake(skb)
  local protocol, offset = packet.transport(skb)
  if protocol ~= TCP or not offset or offset + 20 > #skb then return nil end
  if skb:u16(offset + 2) ~= PORT then return nil end
  local data = offset + (skb:u8(offset + 12) >> 4) * 4
  if data < #skb and skb:u8(data) == HANDSHAKE then return data end
end

local function filter(skb)
  local data = count > 0 and handshake(skb)
  local name = data and tls.sni(skb:string(data), 0, true)
  return name and dns.listed(name, blocked) and DROP or ACCEPT
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
