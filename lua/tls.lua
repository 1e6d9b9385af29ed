-- The ClientHello of a TLS connection (RFC 8446, section 4.1.2), from the bytes that
-- a client sends first.
--
-- Arguments are a string and the offset of the first TLS record in it (bytes from 0,
-- by default 0). What is no ClientHello, is cut off or contradicts itself gives nil and
-- a reason. So does a ClientHello that spans several records.
--
-- tls.sni(bytes[, offset[, partial]])  the server's name that the client asks for, in
--                         lower case, without a final dot; nil, reason, also if there
--                         is none. A ClientHello that is cut off is refused unless
--                         `partial` is true; then it is enough that the name is there,
--                         as in the first segment of a large one.
-- tls.client_hello(bytes[, offset[, into]])  a table (or `into`, filled) with
--                         server_name (as above, or nil), alpn (list of protocol names,
--                         or nil), version (the newest offered), legacy_version,
--                         record_version (integers, see tls.version); nil, reason, with
--                         `into` in no defined state.
-- tls.version(number)     "TLS 1.3" for 0x0304, and so on; "0x1234" for an unknown one
local tls = {}

local byte, sub, unpack = string.byte, string.sub, string.unpack

local HANDSHAKE <const>, CLIENT_HELLO <const> = 22, 1
local RECORD_HEADER <const>, HANDSHAKE_HEADER <const> = 5, 4
local MAX_RECORD <const>, MAX_EXTENSIONS <const>, MAX_PROTOCOLS <const> = 1 << 14, 100, 32
local SERVER_NAME <const>, ALPN <const>, VERSIONS <const> = 0, 16, 43
local RANDOM_END <const>, MAX_NAME <const>, MAX_VERSIONS <const> = 34, 255, 64
local TRUNCATED <const> = "truncated ClientHello"
local LIES <const> = "a length reaches outside what it is in"
local FORMAT <const> = { ">I1", ">I2" }

-- Returns where the vector at a position begins and ends, which may be outside of the
-- bytes, but not behind `stop`; nil, reason. `width` is the size of its length.
local function vector(bytes, position, stop, width)
  local first = position + width
  if first > stop then return nil, LIES end
  if first > #bytes then return nil, TRUNCATED end
  local finish = first + unpack(FORMAT[width], bytes, position + 1)
  if finish > stop then return nil, LIES end
  return first, finish
end

local function host_name(bytes, position, stop)
  local list, list_end = vector(bytes, position, stop, 2)
  if not list then return nil, list_end end
  if list_end ~= stop or list == stop then return nil, "malformed server name" end
  if list >= #bytes then return nil, TRUNCATED end
  if byte(bytes, list + 1) ~= 0 then return nil, "the server name is no host name" end
  local first, finish = vector(bytes, list + 1, list_end, 2)
  if not first then return nil, finish end
  if finish > #bytes then return nil, TRUNCATED end
  if finish ~= list_end then return nil, "more than one server name" end
  if finish - first > MAX_NAME then return nil, "a server name of more than 255 bytes" end
  local name = sub(bytes, first + 1, finish):lower():gsub("%.$", "")
  if name == "" or name:find("[^%w._-]") then
    return nil, "the server name is no host name"
  end
  return name
end

local function protocols(bytes, position, stop)
  local at, list_end = vector(bytes, position, stop, 2)
  if not at then return nil, list_end end
  if list_end ~= stop or at == stop then return nil, "malformed protocol list" end
  local list = {}
  while at < stop do
    local first, finish = vector(bytes, at, stop, 1)
    if not first then return nil, finish end
    if finish > #bytes then return nil, TRUNCATED end
    if #list == MAX_PROTOCOLS then return nil, "more than 32 protocols" end
    list[#list + 1], at = sub(bytes, first + 1, finish), finish
  end
  return list
end

local function newest(bytes, position, stop)
  local at, list_end = vector(bytes, position, stop, 1)
  if not at then return nil, list_end end
  if list_end ~= stop or (stop - at) % 2 == 1 then return nil, "malformed version list" end
  if stop - at > 2 * MAX_VERSIONS then return nil, "more than 64 versions" end
  if stop > #bytes then return nil, TRUNCATED end
  local best = 0
  for i = at + 1, stop, 2 do
    local major, minor = byte(bytes, i, i + 1)
    -- Clients also offer random versions, to see that these are ignored (RFC 8701).
    if major == 3 then best = math.max(best, major << 8 | minor) end
  end
  if best == 0 then return nil, "no version of TLS is offered" end
  return best
end

local READERS <const> = {
  [SERVER_NAME] = { field = "server_name", read = host_name },
  [ALPN] = { field = "alpn", read = protocols },
  [VERSIONS] = { field = "version", read = newest },
}
local NAME_READER <const> = { [SERVER_NAME] = READERS[SERVER_NAME] }

-- Returns where the ClientHello itself begins and ends; nil, reason.
local function hello(bytes, offset, partial)
  if offset < 0 or offset + RECORD_HEADER + HANDSHAKE_HEADER > #bytes then
    return nil, TRUNCATED
  end
  local kind, major, _, record, message, high, low =
    unpack(">BBBI2BBI2", bytes, offset + 1)
  local size = high << 16 | low
  if kind ~= HANDSHAKE or major ~= 3 then return nil, "no TLS handshake record" end
  if record > MAX_RECORD then return nil, "a TLS record of more than 16,384 bytes" end
  if message ~= CLIENT_HELLO then return nil, "no ClientHello" end
  if HANDSHAKE_HEADER + size > record then
    return nil, "the ClientHello spans several records"
  end
  if not partial and offset + RECORD_HEADER + record > #bytes then return nil, TRUNCATED end
  local first = offset + RECORD_HEADER + HANDSHAKE_HEADER
  return first, first + size
end

-- Returns where the extensions begin and end, which is at the same place if there are
-- none; nil, reason.
local function extensions(bytes, first, stop)
  local position, finish = first + RANDOM_END
  for i = 1, 3 do -- the session's id, ciphers, compressions
    first, finish = vector(bytes, position, stop, i == 2 and 2 or 1)
    if not first then return nil, finish end
    position = finish
  end
  if position == stop then return stop, stop end
  first, finish = vector(bytes, position, stop, 2)
  if not first then return nil, finish end
  if finish ~= stop then return nil, "bytes after the ClientHello's extensions" end
  return first, finish
end

-- Fills a table from the extensions that there is a reader for; nil, reason.
local function walk(bytes, position, stop, readers, into)
  for _ = 0, MAX_EXTENSIONS do
    if position == stop then return into end
    local first, finish = vector(bytes, position + 2, stop, 2)
    if not first then return nil, finish end
    local reader = readers[unpack(">I2", bytes, position + 1)]
    if reader then
      if into[reader.field] then return nil, "an extension comes twice" end
      local value, reason = reader.read(bytes, first, finish)
      if not value then return nil, reason end
      into[reader.field] = value
    end
    position = finish
  end
  return nil, "more than 100 extensions"
end

local scratch = {}

function tls.sni(bytes, offset, partial)
  local first, stop = hello(bytes, offset or 0, partial)
  if not first then return nil, stop end
  local position, finish = extensions(bytes, first, stop)
  if not position then return nil, finish end
  scratch.server_name = nil
  local done, reason = walk(bytes, position, finish, NAME_READER, scratch)
  local name = scratch.server_name
  if name and (done or partial and reason == TRUNCATED) then return name end
  return nil, reason or "no server name"
end

function tls.client_hello(bytes, offset, into)
  local first, stop = hello(bytes, offset or 0, false)
  if not first then return nil, stop end
  local position, finish = extensions(bytes, first, stop)
  if not position then return nil, finish end
  into = into or {}
  into.server_name, into.alpn, into.version = nil, nil, nil
  local done, reason = walk(bytes, position, finish, READERS, into)
  if not done then return nil, reason end
  into.legacy_version = unpack(">I2", bytes, first + 1)
  into.record_version = unpack(">I2", bytes, (offset or 0) + 2)
  into.version = into.version or into.legacy_version
  return into
end

local NAMES <const> = {
  [0x0300] = "SSL 3.0", [0x0301] = "TLS 1.0", [0x0302] = "TLS 1.1",
  [0x0303] = "TLS 1.2", [0x0304] = "TLS 1.3",
}

function tls.version(number)
  return NAMES[number] or ("0x%04x"):format(number)
end

return tls
