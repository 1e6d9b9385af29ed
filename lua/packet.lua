-- Where a packet's transport header is, for IPv4 and IPv6.
local packet = {}

-- IPv6 extension headers that are 8 bytes and 8 more for each unit of their length:
-- hop-by-hop options, routing, destination options.
local EXTENSION <const> = { [0] = true, [43] = true, [60] = true }
local FRAGMENT <const>, AUTHENTICATION <const> = 44, 51

local function transport6(skb)
  local protocol, offset = skb:u8(6), 40
  local size = #skb
  while offset + 8 <= size do
    if EXTENSION[protocol] then
      protocol, offset = skb:u8(offset), offset + 8 + skb:u8(offset + 1) * 8
    elseif protocol == AUTHENTICATION then
      protocol, offset = skb:u8(offset), offset + 8 + skb:u8(offset + 1) * 4
    elseif protocol == FRAGMENT then
      if skb:u16(offset + 2) & 0xfff8 ~= 0 then return skb:u8(offset) end
      protocol, offset = skb:u8(offset), offset + 8
    else
      return protocol, offset
    end
  end
  return protocol
end

-- Returns the protocol's number and the offset of its header from the network
-- header, in bytes. There is no offset in a later fragment, in a packet too short
-- for 8 bytes of header, and after IPv6 extensions that end outside the packet.
function packet.transport(skb)
  local first = skb:u8(0)
  if first >> 4 == 6 then return transport6(skb) end
  local protocol, offset = skb:u8(9), (first & 15) * 4
  if skb:u16(6) & 0x1fff ~= 0 or offset + 8 > #skb then return protocol end
  return protocol, offset
end

return packet
