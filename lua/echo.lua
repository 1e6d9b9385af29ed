-- Yields whatever it is resumed with; fails when asked to. No hook.
local values = table.pack(coroutine.yield())
while true do
  local asked = values[1]
  if asked == "fail" then
    error("as asked")
  end
  values = table.pack(coroutine.yield(table.unpack(values, 1, values.n)))
end
