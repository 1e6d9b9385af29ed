-- Addresses as text and as bytes.
--
-- Bytes are strings in network byte order: 4 for IPv4, 16 for IPv6, 6 for Ethernet.
--
-- address.text(bytes)  the text of an IP address; IPv6 in the form of RFC 5952, with
--                      ::ffff:192.0.2.1 for an IPv4-mapped one.
--                      nil, reason for any other number of bytes.
-- address.bytes(text)  the 4 or 16 bytes that a text stands for. IPv4 takes four
--                      decimal numbers without leading zeros, IPv6 every form of
--                      RFC 4291, section 2.2, and no zone.
--                      nil, reason for anything else.
-- address.mac(bytes)   "02:00:5e:10:00:01" for 6 bytes; nil, reason otherwise.
local address = {}

local MAPPED <const> = ("\0"):rep(10) .. "\255\255"
local LONGEST <const> = 45

local function text4(bytes, first)
  return ("%d.%d.%d.%d"):format(bytes:byte(first, first + 3))
end

-- Returns the first and last group of the first longest run of at least two zeros.
local function zeros(groups)
  local run, longest, last = 0, 1, nil
  for i = 1, 8 do
    run = groups[i] == 0 and run + 1 or 0
    if run > longest then longest, last = run, i end
  end
  if last then return last - longest + 1, last end
end

local function hex(groups, first, last)
  local text = {}
  for i = first, last do text[#text + 1] = ("%x"):format(groups[i]) end
  return table.concat(text, ":")
end

local function text6(bytes)
  if bytes:sub(1, 12) == MAPPED then return "::ffff:" .. text4(bytes, 13) end
  local groups = { (">I2I2I2I2I2I2I2I2"):unpack(bytes) }
  local first, last = zeros(groups)
  if not first then return hex(groups, 1, 8) end
  return hex(groups, 1, first - 1) .. "::" .. hex(groups, last + 1, 8)
end

function address.text(bytes)
  if #bytes == 4 then return text4(bytes, 1) end
  if #bytes == 16 then return text6(bytes) end
  return nil, "an IP address has 4 or 16 bytes, not " .. #bytes
end

function address.mac(bytes)
  if #bytes ~= 6 then return nil, "an Ethernet address has 6 bytes, not " .. #bytes end
  return ("%02x:%02x:%02x:%02x:%02x:%02x"):format(bytes:byte(1, 6))
end

local function octet(digits)
  if #digits > 3 or #digits > 1 and digits:byte() == 48 then return nil end
  local value = tonumber(digits)
  return value < 256 and value or nil
end

local function bytes4(text)
  local a, b, c, d = text:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
  if not a then return nil end
  a, b, c, d = octet(a), octet(b), octet(c), octet(d)
  if a and b and c and d then return string.char(a, b, c, d) end
end

-- Appends groups such as "2001:db8" to a list of two-byte strings; nil for bad ones.
local function groups6(text, list)
  if text == "" then return list end
  for group in (text .. ":"):gmatch("([^:]*):") do
    if not group:find("^%x%x?%x?%x?$") then return nil end
    list[#list + 1] = (">I2"):pack(tonumber(group, 16))
  end
  return list
end

-- Returns the text with a final IPv4 address as two groups; nil for a bad one.
local function without_quad(text)
  local head, quad = text:match("^(.*:)([%d.]+)$")
  if not head or not quad:find(".", 1, true) then return text end
  local bytes = bytes4(quad)
  return bytes and head .. ("%x:%x"):format((">I2I2"):unpack(bytes))
end

local function bytes6(text)
  text = without_quad(text)
  if not text then return nil end
  local gap, after = text:find("::", 1, true)
  if not gap then
    local list = groups6(text, {})
    return list and #list == 8 and table.concat(list) or nil
  end
  local list = groups6(text:sub(1, gap - 1), {})
  local before = list and #list
  list = list and groups6(text:sub(after + 1), list)
  if not list or #list > 7 then return nil end
  return table.concat(list, "", 1, before) .. ("\0\0"):rep(8 - #list) ..
         table.concat(list, "", before + 1)
end

function address.bytes(text)
  if type(text) ~= "string" then return nil, "an address is a text, not a " .. type(text) end
  local bytes
  if #text <= LONGEST then
    bytes = text:find(":", 1, true) and bytes6(text) or bytes4(text)
  end
  if bytes then return bytes end
  return nil, ("%q is no IPv4 or IPv6 address"):format(text:sub(1, LONGEST))
end

return address
