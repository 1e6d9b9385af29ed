-- What `lunabridge repl` runs: each resume brings a chunk as text, and gets back how it
-- went ("ok", "more" where it is not complete, "error"), what it printed, and what was
-- wrong. Globals last from chunk to chunk.
local SOURCE <const> = "=stdin"
local MOST_LEVELS <const>, MOST_BYTES <const> = 20, 24 * 1024
-- Levels of the stack above traced: error itself is 0, pcall 1, traced 2.
local FIRST_LEVEL <const> = 3

-- How messages call this script: where a traceback ends.
local OWN <const> = select(2, pcall(error, "", 2)):match("^(.*):%d+: $")

local output = {}

-- There is no terminal in the kernel, so what is printed goes along with the answer.
rawset(_G, "print", function(...)
  local words = table.pack(...)
  for i = 1, words.n do words[i] = tostring(words[i]) end
  output[#output + 1] = table.concat(words, "\t", 1, words.n)
end)

local function bounded(text)
  if #text <= MOST_BYTES then return text end
  return string.format("%s\n... (%d bytes more)", text:sub(1, MOST_BYTES), #text - MOST_BYTES)
end

-- The message with the lines that led there, as far as they can be known without debug:
-- error puts the line of any level of the stack in front of its message.
local function traced(message)
  local metatable = getmetatable(message)
  if type(message) ~= "string" and not (type(metatable) == "table" and metatable.__tostring) then
    message = string.format("(error object is a %s value)", type(message))
  end
  local lines = {}
  for level = FIRST_LEVEL, FIRST_LEVEL + MOST_LEVELS - 1 do
    local _, place = pcall(error, "", level)
    place = place:match("^(.*): $")
    if place and place:match("^(.*):%d+$") == OWN then break end
    lines[#lines + 1] = "\t" .. (place or "[C]")
  end
  while lines[#lines] == "\t[C]" do lines[#lines] = nil end
  table.insert(lines, 1, tostring(message) .. "\nstack traceback:")
  return table.concat(lines, "\n")
end

local function compiled(text)
  local chunk = load("return " .. text, SOURCE)
  if chunk then return chunk end
  return load(text, SOURCE)
end

-- A coroutine of its own, so that a chunk that yields does not yield for this script.
local function run(chunk)
  local thread = coroutine.create(function()
    local results = table.pack(xpcall(chunk, traced))
    if results[1] and results.n > 1 then print(table.unpack(results, 2, results.n)) end
    return results[1], results[2]
  end)
  local sound, ok, message = coroutine.resume(thread)
  if coroutine.status(thread) == "suspended" then
    coroutine.close(thread)
    return "error", "attempt to yield from outside a coroutine"
  end
  if not sound then return "error", tostring(ok) end
  if not ok then return "error", message end
  return "ok"
end

local function evaluate(text)
  local chunk, why = compiled(text)
  if chunk then return run(chunk) end
  return why:find("<eof>$") and "more" or "error", why
end

local status, message
while true do
  local text = coroutine.yield(status, bounded(table.concat(output, "\n")), bounded(message or ""))
  output = {}
  status, message = evaluate(text)
end
