-- Sets of IPv4 and IPv6 prefixes, each with a value: the longest one that holds an
-- address is found by a table lookup per prefix length in use.
--
-- A prefix is a text such as "10.0.0.0/8", "2001:db8::/32", or an address alone, which
-- stands for itself. Bits beyond the length must be zero. An address is a string of 4
-- or 16 bytes as in the packet, or an integer for IPv4. IPv4 prefixes do not hold
-- IPv4-mapped IPv6 addresses.
--
-- cidr.new([prefixes])        a set, of the prefixes in a list; raises an error for a
--                             malformed one.
-- set:add(prefix[, value])    adds a prefix, or gives it another value; value is true
--                             by default. Returns true; nil, reason if malformed.
-- set:remove(prefix)          returns whether the prefix was in the set; nil, reason if
--                             malformed.
-- set:lookup(address)         the value and the length of the longest prefix that holds
--                             the address; nil if none does; nil, reason for what is no address.
-- #set                        number of prefixes.
--
-- A prefix takes about 40 bytes; one longer than 64 bits whose value is not true, 100.
local address = require "address"

local cidr = {}
local methods = {}
local set = { __index = methods, __name = "cidr" }

-- Any odd number: multiplied by it, no two numbers of 64 bits become the same.
local ODD <const> = 0x9e3779b97f4a7c15

-- The first bits of a number of that size, or all, or none.
local function mask(bits, size)
  if bits <= 0 then return 0 end
  return bits >= size and -1 or -1 << (size - bits)
end

-- An address as two numbers of 64 bits; IPv4 needs the first alone.
local function halves(bytes)
  if #bytes == 4 then return (">I4"):unpack(bytes), 0 end
  return (">i8i8"):unpack(bytes)
end

-- Returns the size in bytes, the length and the halves; nil, reason.
local function parse(prefix)
  if type(prefix) ~= "string" then
    return nil, "a prefix is a text, not a " .. type(prefix)
  end
  local text, digits = prefix:match("^([^/]*)/(%d%d?%d?)$")
  local bytes, reason = address.bytes(text or prefix)
  if not bytes then return nil, reason end
  local size = #bytes
  local length = digits and tonumber(digits) or size * 8
  if length > size * 8 then
    return nil, ("%s: the length is at most %d"):format(prefix, size * 8)
  end
  local high, low = halves(bytes)
  if high & ~mask(length, math.min(size * 8, 64)) | low & ~mask(length - 64, 64) ~= 0 then
    return nil, ("%s has bits set beyond its length"):format(prefix)
  end
  return size, length, high, low
end

-- The prefixes of one length, among those of a family, the longest first. `values` has
-- them by their first 64 bits if these are enough, otherwise by a string of all bytes.
-- Strings take memory, and time in a callback. So a longer prefix whose value is true
-- is in `plain`: by a mixture of its halves, which together with the first half gives
-- the second one, and that first half. Where two prefixes mix to the same, the later
-- one is in `values`; `strings` counts those.
local function level_of(family, size, length)
  local at = 1
  while family[at] and family[at].length > length do at = at + 1 end
  local level = family[at]
  if not level or level.length ~= length then
    level = { length = length, count = 0, values = {}, plain = {}, strings = 0 }
    level.high, level.low = mask(length, math.min(size * 8, 64)), mask(length - 64, 64)
    table.insert(family, at, level)
  end
  return level, at
end

-- Gives a prefix of more than 64 bits another value, or none; returns the one before.
local function swap_long(level, high, low, value)
  local mixed, key = high * ODD ~ low, (">i8i8"):pack(high, low)
  local old
  if level.plain[mixed] == high then
    old, level.plain[mixed] = true, nil
  else
    old, level.values[key] = level.values[key], nil
    if old ~= nil then level.strings = level.strings - 1 end
  end
  if value == true and level.plain[mixed] == nil then
    level.plain[mixed] = high
  elseif value ~= nil then
    level.values[key], level.strings = value, level.strings + 1
  end
  return old
end

local function swap(self, size, length, high, low, value)
  local family = self[size]
  local level, at = level_of(family, size, length)
  local old
  if level.low == 0 then
    old, level.values[high] = level.values[high], value
  else
    old = swap_long(level, high, low, value)
  end
  local more = (value ~= nil and 1 or 0) - (old ~= nil and 1 or 0)
  level.count, self.count = level.count + more, self.count + more
  if level.count == 0 then table.remove(family, at) end
  return old
end

function cidr.new(prefixes)
  local new = setmetatable({ [4] = {}, [16] = {}, count = 0 }, set)
  for _, prefix in ipairs(prefixes or {}) do
    local added, reason = new:add(prefix)
    if not added then error(reason, 2) end
  end
  return new
end

function set:__len() return self.count end

function methods:add(prefix, value)
  local size, length, high, low = parse(prefix)
  if not size then return nil, length end
  if value == nil then value = true end
  swap(self, size, length, high, low, value)
  return true
end

function methods:remove(prefix)
  local size, length, high, low = parse(prefix)
  if not size then return nil, length end
  return swap(self, size, length, high, low, nil) ~= nil
end

local function long_value(level, high, low)
  if level.plain[high * ODD ~ low] == high then return true end
  if level.strings > 0 then return level.values[(">i8i8"):pack(high, low)] end
end

local function longest(family, high, low)
  for i = 1, #family do
    local level = family[i]
    local value
    if level.low == 0 then
      value = level.values[high & level.high]
    else
      value = long_value(level, high, low & level.low)
    end
    if value ~= nil then return value, level.length end
  end
end

function methods:lookup(where)
  if math.type(where) == "integer" then
    if where >> 32 ~= 0 then return nil, "an IPv4 address has 32 bits" end
    return longest(self[4], where, 0)
  end
  if #where ~= 4 and #where ~= 16 then
    return nil, "an address has 4 or 16 bytes, not " .. #where
  end
  return longest(self[#where], halves(where))
end

return cidr
