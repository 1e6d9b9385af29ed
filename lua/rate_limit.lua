-- Lets at most RATE packets a second from each source pass at FORWARD, after a burst of
-- BURST; the rest is dropped. A source is an IPv4 address or an IPv6 network of 64 bits.
-- The state of KEYS sources is kept; see bucket.lua for what happens to more.
-- resume(rate, burst[, per]) sets other limits, `rate` packets in `per` seconds, and
-- begins anew; it returns how many packets were dropped so far.
local netfilter = require "netfilter"
local linux = require "linux"
local bucket = require "bucket"

local RATE <const>, BURST <const>, KEYS <const> = 100, 200, 1024
local ACCEPT <const>, DROP <const> = netfilter.action.ACCEPT, netfilter.action.DROP
local IPV6 <const> = netfilter.family.IPV6

local buckets, dropped = bucket.new{ rate = RATE, burst = BURST, keys = KEYS }, 0

local function source(skb)
  if skb:family() == IPV6 then return skb:string(8, 8) end
  return skb:u32(12)
end

netfilter.register{
  pf = netfilter.family.INET,
  hooknum = netfilter.inet_hooks.FORWARD,
  priority = netfilter.ip_priority.FILTER,
  hook = function(skb)
    if buckets:take(source(skb), linux.time()) then return ACCEPT end
    dropped = dropped + 1
    return DROP
  end,
}

while true do
  local rate, burst, per = coroutine.yield(dropped)
  buckets = bucket.new{ rate = rate, burst = burst, per = per, keys = KEYS }
end
