-- DNS messages (RFC 1035, section 4.1), from the bytes of a whole message.
--
-- Names are text in lower case, without the final dot ("" is the root). A byte of a
-- label that is no printable ASCII character, and a dot or a backslash, is written as
-- a backslash and three digits, so a dot always ends a label. Offsets count in bytes
-- from the start of the message. What is malformed gives nil and a reason.
--
-- dns.question(message)   name, type, class and the offset after the first question of
--                         a query; nil, reason, also for a response.
-- dns.header(message[, into])  a table (or `into`, filled) with id, response, opcode,
--                         authoritative, truncated, recursion_desired,
--                         recursion_available, authentic_data, checking_disabled,
--                         rcode, questions, answers, authorities, additionals (counts);
--                         nil, reason.
-- dns.name(message, offset)  a name, compressed or not, the offset after it, and how
--                         many labels and pointers it took; nil, reason. A pointer must
--                         lead back, so that none can loop.
-- dns.record(message, offset[, into])  a resource record as a table (or `into`): name,
--                         type, class, ttl (s), data (offset), size (of the data), next
--                         (offset after it), value, and preference (MX) or priority,
--                         weight, port (SRV). value is the 4 or 16 bytes of A and AAAA,
--                         the name of CNAME, DNAME, NS, PTR, MX and SRV, the joined
--                         strings of TXT, otherwise the bytes of the data. Also the
--                         work as the third result of dns.name (also a text's).
--                         nil, reason, with `into` in no defined state.
-- dns.answers(message)    the list of the answer records of a response; nil, reason if
--                         one is malformed, and for more than 64 answers or 1,000
--                         labels, pointers and texts.
-- dns.parent(name)        the name above a name; nil above a top-level one
-- dns.normal(name)        a name as this library gives it, from one that a user wrote
-- dns.listed(name, names) the name itself or the nearest above it that is a key of the
--                         table `names`; nil if none is
local dns = {}

local byte, sub, unpack = string.byte, string.sub, string.unpack

local HEADER <const>, MAX_NAME <const>, MAX_POINTERS <const> = 12, 255, 127
local MAX_ANSWERS <const>, MAX_WORK <const>, MAX_TEXTS <const> = 64, 1000, 300
local A <const>, NS <const>, CNAME <const>, PTR <const>, MX <const> = 1, 2, 5, 12, 15
local TXT <const>, AAAA <const>, SRV <const>, DNAME <const> = 16, 28, 33, 39
local TRUNCATED <const> = "truncated DNS message"

-- Everything but ! to - / to [ ] to ~, which leaves out dot and backslash.
local UNSAFE <const> = "[^]-~!--/-[]"

local function escape(character)
  return ("\\%03d"):format(character:byte())
end

local function label_text(label)
  if not label:find(UNSAFE) then return label end
  return (label:gsub(UNSAFE, escape))
end

function dns.name(message, offset)
  local labels, count, pointers, length = {}, 0, 0, 1
  local position, limit, after = offset, offset, nil
  while true do
    local size, low = byte(message, position + 1, position + 2)
    if not size then return nil, TRUNCATED end
    if size == 0 then
      return table.concat(labels, "."):lower(), after or position + 1, count + pointers
    elseif size < 64 then
      length = length + size + 1
      if length > MAX_NAME then return nil, "a name of more than 255 bytes" end
      if position + size >= #message then return nil, TRUNCATED end
      count = count + 1
      labels[count] = label_text(sub(message, position + 2, position + 1 + size))
      position = position + 1 + size
    elseif size >= 0xc0 then
      if not low then return nil, TRUNCATED end
      after = after or position + 2
      position, pointers = (size & 63) << 8 | low, pointers + 1
      if position >= limit then return nil, "a name's pointer leads forward" end
      if position < HEADER then return nil, "a name's pointer leads into the header" end
      if pointers > MAX_POINTERS then return nil, "a name of more than 127 pointers" end
      limit = position
    else
      return nil, "a label of an unknown kind"
    end
  end
end

function dns.header(message, into)
  if #message < HEADER then return nil, TRUNCATED end
  into = into or {}
  local id, flags
  id, flags, into.questions, into.answers, into.authorities, into.additionals =
    unpack(">I2I2I2I2I2I2", message)
  into.id, into.opcode, into.rcode = id, flags >> 11 & 15, flags & 15
  into.response, into.authoritative = flags & 0x8000 ~= 0, flags & 0x400 ~= 0
  into.truncated, into.recursion_desired = flags & 0x200 ~= 0, flags & 0x100 ~= 0
  into.recursion_available, into.authentic_data = flags & 0x80 ~= 0, flags & 0x20 ~= 0
  into.checking_disabled = flags & 0x10 ~= 0
  return into
end

local function question(message)
  local name, offset = dns.name(message, HEADER)
  if not name then return nil, offset end
  if offset + 4 > #message then return nil, TRUNCATED end
  local kind, class = unpack(">I2I2", message, offset + 1)
  return name, kind, class, offset + 4
end

function dns.question(message)
  if #message < HEADER then return nil, TRUNCATED end
  local flags, questions = unpack(">I2I2", message, 3)
  if flags & 0x8000 ~= 0 then return nil, "a response" end
  if questions == 0 then return nil, "no question" end
  return question(message)
end

-- A name that is the end of a record's data, from an offset in it.
local function name_value(message, offset, into)
  local name, after, work = dns.name(message, offset)
  if not name then return nil, after end
  if after ~= into.next then return nil, "a record's size does not fit its name" end
  return name, work
end

local function address_value(size)
  return function(message, offset, into)
    if into.size ~= size then return nil, "an address of a wrong size" end
    return sub(message, offset + 1, offset + size), 0
  end
end

local function mx_value(message, offset, into)
  if into.size < 3 then return nil, "a mail exchange without a name" end
  into.preference = unpack(">I2", message, offset + 1)
  return name_value(message, offset + 2, into)
end

local function srv_value(message, offset, into)
  if into.size < 7 then return nil, "a service without a name" end
  into.priority, into.weight, into.port = unpack(">I2I2I2", message, offset + 1)
  return name_value(message, offset + 6, into)
end

local function txt_value(message, offset, into)
  local texts, count = {}, 0
  while offset < into.next do
    local size = byte(message, offset + 1)
    if offset + 1 + size > into.next then return nil, "a text reaches beyond its record" end
    count = count + 1
    if count > MAX_TEXTS then return nil, "more than 300 texts in a record" end
    texts[count] = sub(message, offset + 2, offset + 1 + size)
    offset = offset + 1 + size
  end
  return table.concat(texts), count
end

local VALUES <const> = {
  [A] = address_value(4), [AAAA] = address_value(16),
  [NS] = name_value, [CNAME] = name_value, [PTR] = name_value, [DNAME] = name_value,
  [MX] = mx_value, [SRV] = srv_value, [TXT] = txt_value,
}

local function bytes_value(message, offset, into)
  return sub(message, offset + 1, into.next), 0
end

function dns.record(message, offset, into)
  local name, data, work = dns.name(message, offset)
  if not name then return nil, data end
  if data + 10 > #message then return nil, TRUNCATED end
  into = into or {}
  into.preference, into.priority, into.weight, into.port = nil, nil, nil, nil
  into.name = name
  into.type, into.class, into.ttl, into.size = unpack(">I2I2I4I2", message, data + 1)
  into.data, into.next = data + 10, data + 10 + into.size
  if into.next > #message then return nil, TRUNCATED end
  local more
  into.value, more = (VALUES[into.type] or bytes_value)(message, into.data, into)
  if not into.value then return nil, more end
  return into, work + more
end

-- Returns the offset of the first answer; nil, reason.
local function skip_questions(message, header)
  if header.questions > 1 then return nil, "more than one question" end
  if header.questions == 0 then return HEADER end
  local name, reason, _, offset = question(message)
  if not name then return nil, reason end
  return offset
end

function dns.answers(message)
  local header, reason = dns.header(message)
  if not header then return nil, reason end
  if not header.response then return nil, "a query" end
  if header.answers > MAX_ANSWERS then return nil, "more than 64 answers" end
  local offset, problem = skip_questions(message, header)
  if not offset then return nil, problem end
  local answers, work = {}, 0
  for i = 1, header.answers do
    local record, more = dns.record(message, offset)
    if not record then return nil, more end
    work = work + more
    if work > MAX_WORK then return nil, "more than 1,000 labels, pointers and texts" end
    answers[i], offset = record, record.next
  end
  return answers
end

function dns.parent(name)
  local dot = name:find(".", 1, true)
  return dot and name:sub(dot + 1)
end

function dns.normal(name)
  return (name:lower():gsub("%.$", ""))
end

function dns.listed(name, names)
  repeat
    if names[name] then return name end
    name = dns.parent(name)
  until not name
  return nil
end

return dns
