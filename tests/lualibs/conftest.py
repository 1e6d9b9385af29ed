"""What tests of the Lua libraries share: Lua functions, called in the kernel.

They run in a non-sleepable runtime with the module's defaults, so each call has the
budget and the memory of a packet's callback.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bridge.lunatik import Runtime

# Gives values back as a Python literal, so that tables can cross.
DRIVER = r"""
local show
local HEX = {}
for i = 0, 255 do HEX[string.char(i)] = ("\\x%02x"):format(i) end

local function items(list, first, last)
  local shown = {}
  for i = first, last do shown[i] = show(list[i]) end
  return "[" .. table.concat(shown, ",", first, last) .. "]"
end

function show(value)
  if value == nil then return "None" end
  if type(value) == "boolean" then return value and "True" or "False" end
  if type(value) == "string" then return "b'" .. value:gsub(".", HEX) .. "'" end
  if type(value) ~= "table" then return tostring(value) end
  if #value > 0 then return items(value, 1, #value) end
  local shown = {}
  for key, one in pairs(value) do
    shown[#shown + 1] = ("'%s':%s"):format(key, show(one))
  end
  return "{" .. table.concat(shown, ",") .. "}"
end

local function results(...)
  local last = select("#", ...)
  while last > 1 and select(last, ...) == nil do last = last - 1 end
  return items({...}, 1, last)
end

local args = table.pack(coroutine.yield())
while true do
  local shown = {}
  if args[1] then -- one call for each value
    for i = 3, args.n do
      shown[i - 2] = results(work(args[i], args[2]))
    end
  else
    shown[1] = results(work(table.unpack(args, 2, args.n)))
  end
  args = table.pack(coroutine.yield("[" .. table.concat(shown, ",") .. "]"))
end
"""


class Function:
    """A Lua function in the kernel; it returns the list of its results."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def __call__(self, *args: Any) -> Any:
        """Return the result, or a list of several without nils at its end.

        Strings are bytes, tables dicts or lists.
        """
        results = self._resume(False, args)[0]
        return results[0] if len(results) == 1 else results or None

    def each(
        self, values: Iterable[Any], second: Any = None, *, together: int = 16
    ) -> list[Any]:
        """Return the results of a call with each value, and a second argument.

        ``together`` calls share one budget.
        """
        waiting, results = list(values), []
        for start in range(0, len(waiting), together):
            results += self._resume(True, [second, *waiting[start : start + together]])
        return [one[0] if len(one) == 1 else one or None for one in results]

    def _resume(self, each: bool, args: Iterable[Any]) -> list[Any]:
        shown = self.runtime.resume(each, *args)
        assert isinstance(shown, bytes)
        return list(ast.literal_eval(shown.decode()))


@pytest.fixture
def lua(lunatik: Any) -> Iterator[Callable[[str], Function]]:
    """Make Lua text that defines the function ``work`` callable."""
    with ExitStack() as stack:

        def function(source: str) -> Function:
            runtime = lunatik.runtime("library", source=source + DRIVER, sleep=False)
            return Function(stack.enter_context(runtime))

        yield function
