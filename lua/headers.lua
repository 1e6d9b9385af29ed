-- Packet headers by field name, read from bytes.
--
-- Each reader takes a string, the offset of the header in it (bytes from 0, by default
-- 0) and optionally a table to fill, so that a callback need not make one per packet.
-- It returns the table; or nil and a reason, with the table untouched, when the header
-- is not all there or contradicts itself. A field that does not apply is nil. Offsets
-- among the fields count from the start of the string; addresses are strings of bytes,
-- see address.lua. What follows a header may be cut off: `length` is what it claims.
--
-- headers.ethernet  source, destination, type (of what follows the VLAN tags; below
--                   0x600 a length), vlan, vlan_priority (of the outer tag), inner_vlan,
--                   payload (offset of what follows). At most two tags.
-- headers.arp       operation (1 request, 2 reply), sender_mac, sender, target_mac,
--                   target; Ethernet and IPv4 only.
-- headers.ip        headers.ipv4 or headers.ipv6, by the version
-- headers.ipv4      version, header_length, dscp, ecn, length (with the header), id,
--                   dont_fragment, more_fragments, fragment_offset (bytes), ttl,
--                   protocol, checksum, source, destination, options, payload (offsets)
-- headers.ipv6      version, dscp, ecn, flow_label, length (with the header), ttl,
--                   next_header, source, destination; after the extension headers
--                   protocol and payload (offset); id, more_fragments, fragment_offset
--                   (0 if not fragmented), extensions (how many). Hop-by-hop options,
--                   routing, fragment, authentication and destination options are
--                   walked, at most 16; a later fragment's payload follows its
--                   fragment header.
-- headers.tcp       source_port, destination_port, sequence, acknowledgement,
--                   header_length, flags (integer), fin, syn, rst, psh, ack, urg, ece,
--                   cwr (booleans), window, checksum, urgent, options, payload (offsets)
-- headers.udp       source_port, destination_port, length (with the header), checksum,
--                   payload
-- headers.icmp      type, code, checksum, id and sequence (echo), mtu (fragmentation
--                   needed), gateway (redirect), payload
-- headers.icmp6     type, code, checksum, id and sequence (echo), mtu (packet too big),
--                   pointer (parameter problem), target (neighbour solicitation,
--                   advertisement, redirect), payload
--
-- headers.option(bytes, header, kind)  offset and size of the data of an option, for
--                   what headers.ipv4 or headers.tcp returned for the same string; nil
--                   if it is not there, and a reason if the options are malformed
-- headers.mss(bytes, header)           the maximum segment size that a TCP header
--                   announces; nil as for option
local headers = {}

local byte, unpack = string.byte, string.unpack

local VLAN <const> = { [0x8100] = true, [0x88a8] = true, [0x9100] = true }
-- IPv6 extension headers of 8 bytes, and 8 more for each unit of their length.
local EXTENSION <const> = { [0] = true, [43] = true, [60] = true }
local FRAGMENT <const>, AUTHENTICATION <const> = 44, 51
local MAX_EXTENSIONS <const> = 16
local END <const>, PADDING <const>, MSS <const> = 0, 1, 2

local function lacks(bytes, offset, size)
  return offset < 0 or offset + size > #bytes
end

function headers.ethernet(bytes, offset, into)
  offset = offset or 0
  if lacks(bytes, offset, 14) then return nil, "truncated Ethernet header" end
  local destination, source, kind, position = unpack(">c6c6I2", bytes, offset + 1)
  local outer, inner
  while VLAN[kind] do
    if inner then return nil, "more than two VLAN tags" end
    if lacks(bytes, position - 1, 4) then return nil, "truncated VLAN tag" end
    outer, inner, kind, position = outer or unpack(">I2", bytes, position),
                                   outer and unpack(">I2", bytes, position) & 0xfff,
                                   unpack(">I2", bytes, position + 2)
  end
  into = into or {}
  into.destination, into.source, into.type = destination, source, kind
  into.vlan, into.vlan_priority = outer and outer & 0xfff, outer and outer >> 13
  into.inner_vlan, into.payload = inner, position - 1
  return into
end

function headers.arp(bytes, offset, into)
  offset = offset or 0
  if lacks(bytes, offset, 8) then return nil, "truncated ARP header" end
  local hardware, protocol, sizes, operation = unpack(">I2I2I2I2", bytes, offset + 1)
  if hardware ~= 1 or protocol ~= 0x800 or sizes ~= 0x604 then
    return nil, "not ARP for IPv4 over Ethernet"
  end
  if lacks(bytes, offset, 28) then return nil, "truncated ARP header" end
  into = into or {}
  into.operation = operation
  into.sender_mac, into.sender, into.target_mac, into.target =
    unpack(">c6c4c6c4", bytes, offset + 9)
  return into
end

function headers.ipv4(bytes, offset, into)
  offset = offset or 0
  if lacks(bytes, offset, 20) then return nil, "truncated IPv4 header" end
  local first, service, length, id, fragment, ttl, protocol, checksum, source, destination =
    unpack(">BBI2I2I2BBI2c4c4", bytes, offset + 1)
  local size = (first & 15) * 4
  if first >> 4 ~= 4 then return nil, "not IPv4" end
  if size < 20 then return nil, "the IPv4 header claims less than 20 bytes" end
  if lacks(bytes, offset, size) then return nil, "truncated IPv4 header" end
  if length < size then return nil, "the IPv4 packet claims to be shorter than its header" end
  into = into or {}
  into.version, into.header_length, into.length = 4, size, length
  into.dscp, into.ecn, into.id = service >> 2, service & 3, id
  into.dont_fragment, into.more_fragments = fragment & 0x4000 ~= 0, fragment & 0x2000 ~= 0
  into.fragment_offset = (fragment & 0x1fff) * 8
  into.ttl, into.protocol, into.checksum = ttl, protocol, checksum
  into.source, into.destination = source, destination
  into.options, into.payload = offset + 20, offset + size
  return into
end

-- Returns protocol, offset of its header, number of extension headers and that of the
-- fragment header, or nil; nil, reason.
local function extensions(bytes, protocol, offset)
  local fragment
  for count = 0, MAX_EXTENSIONS do
    local ends = protocol ~= FRAGMENT and protocol ~= AUTHENTICATION and
                 not EXTENSION[protocol]
    if ends then return protocol, offset, count, fragment end
    if lacks(bytes, offset, 8) then return nil, "truncated IPv6 extension header" end
    local next_header, units = byte(bytes, offset + 1, offset + 2)
    local size = 8 + units * 8
    if protocol == FRAGMENT then
      fragment, size = offset, 8
      if unpack(">I2", bytes, offset + 3) & 0xfff8 ~= 0 then
        return next_header, offset + 8, count + 1, fragment
      end
    elseif protocol == AUTHENTICATION then
      size = 8 + units * 4
    end
    if lacks(bytes, offset, size) then return nil, "truncated IPv6 extension header" end
    protocol, offset = next_header, offset + size
  end
  return nil, "more than 16 IPv6 extension headers"
end

function headers.ipv6(bytes, offset, into)
  offset = offset or 0
  if lacks(bytes, offset, 40) then return nil, "truncated IPv6 header" end
  local first, length, next_header, ttl, source, destination =
    unpack(">I4I2BBc16c16", bytes, offset + 1)
  if first >> 28 ~= 6 then return nil, "not IPv6" end
  local protocol, payload, count, fragment = extensions(bytes, next_header, offset + 40)
  if not protocol then return nil, payload end
  into = into or {}
  into.version, into.length, into.ttl = 6, 40 + length, ttl
  into.dscp, into.ecn, into.flow_label = first >> 22 & 63, first >> 20 & 3, first & 0xfffff
  into.next_header, into.source, into.destination = next_header, source, destination
  into.protocol, into.payload, into.extensions = protocol, payload, count
  into.fragment_offset, into.more_fragments, into.id = 0, false, nil
  if fragment then
    local place, id = unpack(">I2I4", bytes, fragment + 3)
    into.fragment_offset, into.more_fragments, into.id = place & 0xfff8, place & 1 ~= 0, id
  end
  return into
end

function headers.ip(bytes, offset, into)
  local first = byte(bytes, (offset or 0) + 1)
  if not first then return nil, "truncated IP header" end
  if first >> 4 == 4 then return headers.ipv4(bytes, offset, into) end
  if first >> 4 == 6 then return headers.ipv6(bytes, offset, into) end
  return nil, "neither IPv4 nor IPv6"
end

function headers.tcp(bytes, offset, into)
  offset = offset or 0
  if lacks(bytes, offset, 20) then return nil, "truncated TCP header" end
  local source, destination, sequence, acknowledgement, flags, window, checksum, urgent =
    unpack(">I2I2I4I4I2I2I2I2", bytes, offset + 1)
  local size = (flags >> 12) * 4
  if size < 20 then return nil, "the TCP header claims less than 20 bytes" end
  if lacks(bytes, offset, size) then return nil, "truncated TCP header" end
  into = into or {}
  into.source_port, into.destination_port = source, destination
  into.sequence, into.acknowledgement = sequence, acknowledgement
  into.header_length, into.flags = size, flags & 0xfff
  into.fin, into.syn, into.rst = flags & 1 ~= 0, flags & 2 ~= 0, flags & 4 ~= 0
  into.psh, into.ack, into.urg = flags & 8 ~= 0, flags & 16 ~= 0, flags & 32 ~= 0
  into.ece, into.cwr = flags & 64 ~= 0, flags & 128 ~= 0
  into.window, into.checksum, into.urgent = window, checksum, urgent
  into.options, into.payload = offset + 20, offset + size
  return into
end

function headers.udp(bytes, offset, into)
  offset = offset or 0
  if lacks(bytes, offset, 8) then return nil, "truncated UDP header" end
  local source, destination, length, checksum = unpack(">I2I2I2I2", bytes, offset + 1)
  if length < 8 then return nil, "the UDP datagram claims less than 8 bytes" end
  into = into or {}
  into.source_port, into.destination_port = source, destination
  into.length, into.checksum, into.payload = length, checksum, offset + 8
  return into
end

local ECHO <const> = { [0] = true, [8] = true }
local ECHO6 <const> = { [128] = true, [129] = true }
local TARGET <const> = { [135] = true, [136] = true, [137] = true }

-- What ICMP and ICMPv6 have in common; also the second word, as a number.
local function icmp(bytes, offset, echo, into)
  if lacks(bytes, offset, 8) then return nil, "truncated ICMP header" end
  local kind, code, checksum, word = unpack(">BBI2I4", bytes, offset + 1)
  if TARGET[kind] and echo == ECHO6 and lacks(bytes, offset, 24) then
    return nil, "truncated neighbour discovery message"
  end
  into = into or {}
  into.type, into.code, into.checksum, into.payload = kind, code, checksum, offset + 8
  into.id, into.sequence = nil, nil
  if echo[kind] then into.id, into.sequence = word >> 16, word & 0xffff end
  return into, word
end

function headers.icmp(bytes, offset, into)
  offset = offset or 0
  local header, word = icmp(bytes, offset, ECHO, into)
  if not header then return nil, word end
  local kind = header.type
  header.mtu = kind == 3 and header.code == 4 and word & 0xffff or nil
  header.gateway = kind == 5 and bytes:sub(offset + 5, offset + 8) or nil
  return header
end

function headers.icmp6(bytes, offset, into)
  offset = offset or 0
  local header, word = icmp(bytes, offset, ECHO6, into)
  if not header then return nil, word end
  local kind = header.type
  header.mtu, header.pointer = kind == 2 and word or nil, kind == 4 and word or nil
  header.target = TARGET[kind] and bytes:sub(offset + 9, offset + 24) or nil
  return header
end

function headers.option(bytes, header, kind)
  local position, stop = header.options, header.payload
  while position < stop do
    local here, size = byte(bytes, position + 1, position + 2)
    if here == END then return nil end
    if here == PADDING then
      size = 1
    elseif not size or size < 2 or position + size > stop then
      return nil, "malformed option"
    elseif here == kind then
      return position + 2, size - 2
    end
    position = position + size
  end
  return nil
end

function headers.mss(bytes, header)
  local offset, size = headers.option(bytes, header, MSS)
  if not offset then return nil, size end
  if size ~= 2 then return nil, "malformed option" end
  return (unpack(">I2", bytes, offset + 1))
end

return headers
