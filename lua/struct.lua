-- Fixed layouts of bytes, with names for the fields.
--
--   local struct = require "struct"
--   local udp = struct{ {"source", "I2"}, {"destination", "I2"}, {"length", "I2"},
--                       {"checksum", "I2"} }
--
-- struct(layout)          a layout from a list of fields in order, each a name and a
--                         format of string.pack of fixed size: i1 to i8, I1 to I8, b B
--                         h H l L j J T, and c1 and more for bytes. Network byte order
--                         without padding, or little endian if layout.endian is "<".
--                         Raises an error that names a wrong field.
-- s:unpack(bytes[, offset[, into]])  a table (or `into`, filled) of the fields that
--                         begin at an offset, 0 by default; nil, reason if the bytes do
--                         not reach.
-- s:pack(values)          the bytes for a table of fields; raises an error that names a
--                         field that is missing, or says what does not fit.
-- #s                      size in bytes
local methods = {}
local structs = { __index = methods, __name = "struct" }

local FORMATS <const> = "^[bBhHlLjJT]$"
local SIZED <const> = "^[iI][1-8]$"
local BYTES <const> = "^c[1-9]%d?%d?%d?$"

local function checked(field, place)
  local name, format = table.unpack(type(field) == "table" and field or {})
  if type(name) ~= "string" or type(format) ~= "string" then
    error(("field %d of the layout is no name and format"):format(place), 3)
  end
  if not (format:find(FORMATS) or format:find(SIZED) or format:find(BYTES)) then
    error(("field %s has the format %q, which has no fixed size or is not known")
          :format(name, format), 3)
  end
  return name, format
end

local function struct(layout)
  local names, formats, size = {}, { layout.endian or ">" }, 0
  if formats[1] ~= "<" and formats[1] ~= ">" then error('endian is "<" or ">"', 2) end
  for place, field in ipairs(layout) do
    local name, format = checked(field, place)
    names[place], formats[place + 1] = name, format
    size = size + format:packsize()
  end
  return setmetatable({ names = names, format = table.concat(formats), size = size }, structs)
end

function structs:__len() return self.size end

-- Gives the fields from one on their values, without a table for these.
local function assign(names, into, place, value, ...)
  local name = names[place]
  if not name then return into end
  into[name] = value
  return assign(names, into, place + 1, ...)
end

function methods:unpack(bytes, offset, into)
  offset = offset or 0
  if offset < 0 or offset + self.size > #bytes then
    return nil, ("%d bytes at offset %d are outside the %d there are")
                :format(self.size, offset, #bytes)
  end
  return assign(self.names, into or {}, 1, self.format:unpack(bytes, offset + 1))
end

function methods:pack(values)
  local list = {}
  for place, name in ipairs(self.names) do
    list[place] = values[name]
    if list[place] == nil then error(("the field %s is missing"):format(name), 2) end
  end
  return self.format:pack(table.unpack(list))
end

return struct
