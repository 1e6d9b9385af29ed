-- Drops TLS ClientHellos (TCP port 443, IPv4 and IPv6) that ask for listed names and the
-- names below them, at FORWARD; everything else passes: a ClientHello whose name is
-- encrypted or not in its first segment, and what cannot be read, too.
-- resume("block", name), resume("allow", name) change the list while packets flow;
-- both return how many names are listed. It starts empty.
local netfilter = require "netfilter"
local blocklist = require "blocklist"
local tls = require "tls"

local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local TCP <const>, PORT <const>, HANDSHAKE <const> = 6, 443, 22

local blocked = blocklist.new()

-- A view, for no bytes are copied then: most segments are data, not handshakes.
local function begins_handshake(skb)
  local payload = skb:data("payload")
  return payload and #payload > 0 and payload:getuint8(0) == HANDSHAKE
end

local function filter(skb)
  if skb:dport() ~= PORT or skb:protocol() ~= TCP or #blocked == 0 then return ACCEPT end
  local name = begins_handshake(skb) and tls.sni(skb:payload(), 0, true)
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
