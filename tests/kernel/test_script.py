"""Finding, reading and compiling scripts; the Lua language as the kernel has it."""

from __future__ import annotations

import pytest

from bridge.errors import LuaError, UsageError
from bridge.lunatik import Lunatik

pytestmark = pytest.mark.kernel


@pytest.fixture
def rooted(tmp_path):
    """The module with a Lua root of the test's own."""

    def load(**files: str | bytes) -> Lunatik:
        for name, text in files.items():
            path = tmp_path / "root" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".lua").write_bytes(
                text if isinstance(text, bytes) else text.encode()
            )
        return Lunatik.load(root=tmp_path / "root")

    return load


def test_dots_and_slashes_name_directories(rooted):
    with rooted(deep__er="return 1") as lunatik:
        lunatik.runtime("deep.er").stop()
        lunatik.runtime("deep/er").stop()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a..b", ".a", "a.", "a//b", "", "a b", "a\tb", "é"]
)
def test_a_name_that_could_leave_the_root_is_refused(lunatik, name):
    with pytest.raises(LuaError, match=r"bad script name|a script's name has"):
        lunatik.runtime(name)


def test_a_link_out_of_the_root_is_not_followed(rooted, tmp_path):
    (tmp_path / "secret.lua").write_text("return 1")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.lua").symlink_to(tmp_path / "secret.lua")
    (tmp_path / "root" / "up.lua").symlink_to("../secret.lua")
    with rooted() as lunatik:
        for name in ("link", "up"):
            with pytest.raises(LuaError, match=f"script '{name}' not found"):
                lunatik.runtime(name)


def test_an_empty_script_is_a_script(rooted):
    with rooted(empty="") as lunatik:
        lunatik.runtime("empty").stop()


def test_a_directory_and_a_huge_file_are_errors(rooted, tmp_path):
    with rooted(big=b"-" * (1024 * 1024 + 1)) as lunatik:
        (tmp_path / "root" / "dir.lua").mkdir()
        with pytest.raises(LuaError, match=r"cannot read .*dir\.lua"):
            lunatik.runtime("dir")
        with pytest.raises(LuaError, match=r"cannot read .*big\.lua"):
            lunatik.runtime("big")


def test_a_syntax_error_names_file_and_line(rooted):
    with (
        rooted(bad="local x\nx = = 1") as lunatik,
        pytest.raises(LuaError, match=r"bad\.lua:2: unexpected symbol near '='"),
    ):
        lunatik.runtime("bad")


def test_bytecode_is_refused_by_every_door(rooted):
    with rooted(code=b"\x1bLua\x54\x00", asks="require 'code'") as lunatik:
        for name in ("code", "asks"):
            with pytest.raises(LuaError, match="attempt to load a binary chunk"):
                lunatik.runtime(name)
        with pytest.raises(LuaError, match="attempt to load a binary chunk"):
            lunatik.runtime("code", source=b"\x1bLua\x54\x00")
        runtime = lunatik.runtime(
            "loader",
            source="coroutine.yield() local f, m = load('\\27Lua') return f, m, string.dump",
        )
        refused, message, dump = runtime.resume()
        assert (refused, dump) == (None, None)
        assert b"attempt to load a binary chunk" in message
        with pytest.raises(LuaError, match="only text chunks are loaded"):
            lunatik.runtime("binary", source="load('x', 'x', 'b')")


def test_a_file_is_sent_as_source(lunatik, tmp_path):
    path = tmp_path / "mine.lua"
    path.write_text("error('from the file')")
    with pytest.raises(LuaError, match="mine:1: from the file"):
        lunatik.runtime(path)
    with pytest.raises(UsageError, match="cannot read"):
        lunatik.runtime(tmp_path / "none.lua")
    path.write_bytes(b"-" * (60 * 1024 + 1))
    with pytest.raises(UsageError, match="can be sent"):
        lunatik.runtime(path)


def test_require_loads_once_and_explains_what_is_missing(rooted):
    with rooted(
        once="count = (count or 0) + 1 return {count = count}",
        user="assert(require 'once' == require 'once' and require('once').count == 1)",
        lost="require 'no.such'",
    ) as lunatik:
        lunatik.runtime("user").stop()
        with pytest.raises(LuaError, match=r"module 'no.such' not found: .*/no/such.lua"):
            lunatik.runtime("lost")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("local x = 1.5", "malformed number near '1.5' .Lua in the kernel has 64-bit integers"),
        ("local x = 1e3", "malformed number"),
        ("local x = 99999999999999999999", "malformed number"),
        ("local a, b = 6, 3\nlocal x = a / b", "script:2: '/' needs floats"),
        ("local x = 6 / 3", "script:1: '/' needs floats"),
        ("local a = 2 local x = a ^ 2", r"script:1: '\^' needs floats"),
        ("local x = '6' / 3", "'/' needs floats"),
        ("string.format('%f', 1)", "a float format needs floats"),
        ("string.format('%a', 1)", "a float format needs floats"),
        ("string.pack('d', 1)", "option 'd' needs floats"),
        ("string.unpack('f', '1234')", "option 'f' needs floats"),
        ("setmetatable({}, {__gc = function() end})", "a finalizer .__gc. cannot be written"),
        ("local x = 1 // 0", "attempt to divide by zero"),
        ("local x = 1 % 0", "attempt to perform 'n%+0'"),
    ],
)
def test_what_the_kernel_cannot_do_raises_a_clear_error(script, source, message):
    with pytest.raises(LuaError, match=message):
        script(source)


LANGUAGE = r"""
local linux = require "linux"
coroutine.yield()
assert(7 // 2 == 3 and -7 // 2 == -4 and 7 % -3 == -2 and 1 << 63 == math.mininteger)
assert(0x7fffffffffffffff + 1 == math.mininteger and "10" + 5 == 15 and 10 .. "" == "10")
assert(math.type(1) == "integer" and math.ult(1, -1) and math.abs(-5) == 5)
assert(math.max(3, 9, 4) == 9 and math.min(3, -9) == -9 and math.tointeger("8") == 8)
assert(tonumber("0x10") == 16 and tonumber("z", 36) == 35 and tonumber("1.5") == nil)
assert(tostring(-5) == "-5" and #tostring(print) > 10)
assert(string.format("%5d|%-4s|%x|%q|%c|%i", 42, "a", 255, "q\n", 65, 7) ==
       '   42|a   |ff|"q\\\n"|A|7')
assert(("hello"):gsub("l+", "L") == "heLo" and ("k=v"):match("(%w)=(%w)") == "k")
assert(string.pack(">I2I4z", 1, 2, "s"):byte(2) == 1)
assert(string.unpack("<i8", ("\255"):rep(8)) == -1)
local t = {5, 2, 8, 1} table.sort(t, function(a, b) return a > b end)
assert(table.concat(t, ",") == "8,5,2,1" and select("#", table.unpack(t)) == 4)
local sum = 0 for i = 10, 1, -3 do sum = sum + i end assert(sum == 22)
for i = math.maxinteger - 1, math.maxinteger do sum = i end assert(sum == math.maxinteger)
local closed do local c <close> = setmetatable({}, {__close = function() closed = true end}) end
assert(closed)
local wrap = coroutine.wrap(function(...) for _, v in ipairs{...} do coroutine.yield(v) end end)
assert(wrap(1, 2) == 1 and wrap() == 2)
goto done
error("unreachable")
::done::
assert(utf8.char(228, 8364) == "ä€" and utf8.len("ä€") == 2)
local weak = setmetatable({{}}, {__mode = "v"}) collectgarbage() assert(#weak == 0)
assert(select(2, pcall(error, {code = 7})).code == 7)
assert(not pcall(function() local x <const> = 1; return x .. {} end))
assert(xpcall(function() error("x", 0) end, function(m) return m .. "!" end) == false)
assert(load("return ...", "chunk", "t", {})(4) == 4 and load("syntax error") == nil)
assert(select("#", load("return 1, 2")()) == 2)
assert(math.type(collectgarbage("count")) == "integer" and collectgarbage() == 0)
assert((""):rep(1 << 62) == "" and ("ab"):rep(3, "-") == "ab-ab-ab")
assert(io == nil and os == nil and debug == nil and dofile == nil and loadfile == nil)
assert(linux.time() > 1600000000 * 1000000000)
for _ = 1, 100 do local r = linux.random(3, 5) assert(r >= 3 and r <= 5) end
assert(linux.random(1) == 1 and math.type(linux.random()) == "integer")
assert(not pcall(linux.random, 5, 3))
return "done"
"""


@pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])
def test_the_language_works_as_documented_for_integers(script, sleep):
    assert script(LANGUAGE, sleep=sleep).resume() == b"done"
