"""Where Lua in the kernel differs from stock Lua; docs/lua-api.md lists it."""

from __future__ import annotations

import os
import subprocess

import pytest

from bridge.errors import LuaError

pytestmark = pytest.mark.kernel


@pytest.fixture
def evaluate(script):
    """What a sleepable script returns."""

    def run(body: str) -> object:
        return script("coroutine.yield() " + body).resume()

    return run


def test_strings_that_stand_for_floats_are_no_numbers(evaluate):
    body = """
    for _, text in ipairs{"1.5", "1e3", ".5", "0x1p4", "inf", "nan", "1.0"} do
      assert(tonumber(text) == nil, text)
      assert(math.tointeger(text) == nil, text)
      assert(not pcall(function() return text + 1 end), text)
    end
    return tonumber("15"), "15" + 1
    """
    assert evaluate(body) == (15, 16)


@pytest.mark.parametrize("conversion", list("aAeEfFgG"))
def test_formats_of_floats_raise(script, conversion):
    with pytest.raises(LuaError, match=r"needs floats|invalid conversion"):
        script(f"string.format('%{conversion}', 1)")


@pytest.mark.parametrize("option", list("fdn"))
@pytest.mark.parametrize("function", ["pack", "unpack", "packsize"])
def test_packing_floats_raises(script, function, option):
    with pytest.raises(LuaError, match=f"option '{option}' needs floats"):
        script(f"string.{function}('<{option}', '12345678')")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("function() return 'return 1' end", "string expected, got function"),
        ("'return 1', 'chunk', 'b'", "only text chunks are loaded"),
        ("nil", "string expected"),
    ],
)
def test_load_takes_text_in_a_string_alone(script, arguments, message):
    with pytest.raises(LuaError, match=message):
        script(f"load({arguments})")


def test_print_writes_a_line_of_the_kernel_log(script):
    mark = os.urandom(8).hex()
    runtime = script(f"print('{mark}', 1, nil, true)", name="prints")
    logged = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in logged.splitlines() if mark in line)
    assert f"lunatik: runtime {runtime.id} (prints): {mark}\t1\tnil\ttrue" in _unescaped(line)


def _unescaped(line: str) -> str:
    return line.replace("\\x09", "\t")


def test_warn_writes_nothing(script):
    mark = os.urandom(8).hex()
    script(f"warn('@on') warn('{mark}')")
    logged = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    assert mark not in logged


def test_random_numbers_stay_in_their_interval(evaluate):
    body = """
    local linux = require "linux"
    local seen = {}
    for _, random in ipairs{math.random, linux.random} do
      for _ = 1, 200 do
        local n = random(4)
        assert(n >= 1 and n <= 4)
        seen[n] = true
        assert(random(-2, -1) < 0)
        assert(math.type(random()) == "integer")
      end
      assert(not pcall(random, 2, 1) and not pcall(random, 0))
    end
    assert(linux.random(math.mininteger, math.maxinteger) ~= nil)
    return #seen
    """
    assert evaluate(body) == 4
