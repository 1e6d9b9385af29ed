-- Reading DNS questions (RFC 1035, section 4.1).
local dns = {}

local HEADER <const>, MAX_NAME <const> = 12, 255

-- Returns the name asked for by a DNS message, in lower case and without the final
-- dot ("" for the root), or nil for a response and for what is not well formed.
function dns.question(message)
  local size = #message
  if size < HEADER + 5 or message:byte(3) & 0x80 ~= 0 then return nil end
  local labels, position = {}, HEADER + 1
  while position - HEADER <= MAX_NAME and position <= size do
    local len = message:byte(position)
    if len == 0 then return table.concat(labels, "."):lower() end
    if len > 63 or position + len > size then return nil end
    labels[#labels + 1] = message:sub(position + 1, position + len)
    position = position + len + 1
  end
  return nil
end

-- Returns the name above a name, or nil above a top-level one.
function dns.parent(name)
  local dot = name:find(".", 1, true)
  return dot and name:sub(dot + 1)
end

-- Returns a name as dns.question() gives it.
function dns.normal(name)
  return (name:lower():gsub("%.$", ""))
end

return dns
