-- Sets of values, such as names or ports.
--
-- set.new{ v1, v2, ... }  a set of the list's values
-- s:has(value)            whether the value is in the set
-- s:add(value)            adds it; returns whether it is new. Raises an error for nil.
-- s:remove(value)         removes it; returns whether it was there
-- #s                      number of values
local set = {}
local methods = {}
local sets = { __index = methods, __name = "set" }

function set.new(list)
  local new = setmetatable({ values = {}, count = 0 }, sets)
  for _, value in ipairs(list or {}) do new:add(value) end
  return new
end

function sets:__len() return self.count end

function methods:has(value)
  return self.values[value] == true
end

function methods:add(value)
  if self.values[value] then return false end
  self.values[value], self.count = true, self.count + 1
  return true
end

function methods:remove(value)
  if not self.values[value] then return false end
  self.values[value], self.count = nil, self.count - 1
  return true
end

return set
