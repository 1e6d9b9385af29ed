"""set.lua, struct.lua and blocklist.lua."""

from __future__ import annotations

import random
import struct

import pytest

from bridge.errors import LuaError

pytestmark = pytest.mark.kernel

SET = """
local set = require "set"
local values = set.new{ "a", 5, "a" }
local works = {
  has = function(value) return values:has(value) end,
  add = function(value) return values:add(value) end,
  remove = function(value) return values:remove(value) end,
  size = function() return #values, #set.new() end,
}
function work(first, what) return works[what](first) end
"""
BLOCKLIST = """
local list = require("blocklist").new()
local works = {
  change = function(name, verb) list:change(verb, name) return #list end,
  has = function(name) return list:has(name) end,
}
function work(name, what, ...) return works[what](name, ...) end
"""
STRUCT = """
local struct = require "struct"
local layout = { {"kind", "B"}, {"size", "I3"}, {"delta", "i2"}, {"tag", "c4"}, {"id", "j"} }
local big, little = struct(layout), nil
layout.endian = "<"
little = struct(layout)
local chosen = { big = big, little = little }
function work(what, endian, ...)
  local one = chosen[endian]
  if what == "size" then return #one end
  if what == "unpack" then return one:unpack(...) end
  if what == "again" then return one:pack((assert(one:unpack(...)))) end
  local values = table.pack(...)
  return one:pack{ kind = values[1], size = values[2], delta = values[3], tag = values[4],
                   id = values[5] }
end
"""


def test_a_set_has_what_was_added(lua):
    work = lua(SET)
    assert work(None, "size") == [2, 0]
    assert work.each(["a", 5, "b", "5", None], "has") == [True, True, False, False, False]
    assert work.each(["b", "a"], "add") == [True, False]
    assert work.each(["a", "a", "c"], "remove") == [True, False, False]
    assert work.each(["a", "b"], "has") == [False, True]
    assert work(None, "size") == [2, 0]


def test_a_blocklist_has_what_was_blocked_and_the_names_below(lua):
    work = lua(BLOCKLIST)
    names = ["bad.example", "www.bad.example", "notbad.example", "example", "worse", ""]
    assert work.each(names, "has") == [False] * 6
    for name, size in (("Bad.Example.", 1), ("bad.example", 1), ("worse", 2)):
        assert work(name, "change", "block") == size
    assert work.each(names, "has") == [True, True, False, False, True, False]
    for name, size in (("example", 2), ("BAD.example", 1), ("bad.example", 1)):
        assert work(name, "change", "allow") == size
    assert work.each(names, "has") == [False] * 4 + [True, False]


@pytest.mark.parametrize(
    ("verb", "name"), [("forbid", "x"), (None, "x"), ("block", None), ("allow", 5), (5, "x")]
)
def test_a_blocklist_refuses_other_words_where_it_was_given_them(lua, verb, name):
    work = lua(BLOCKLIST)
    with pytest.raises(LuaError, match=r'library:[0-9]+: resume takes "block" or "allow"'):
        work(name, "change", verb)


def _packed(endian: str, values: tuple[int, int, int, bytes, int]) -> bytes:
    order = "big" if endian == "big" else "little"
    kind, size, delta, tag, number = values
    sign = ">" if endian == "big" else "<"
    return (
        bytes([kind])
        + size.to_bytes(3, order)  # type: ignore[arg-type]
        + struct.pack(f"{sign}h", delta)
        + tag
        + struct.pack(f"{sign}q", number)
    )


@pytest.mark.parametrize("endian", ["big", "little"])
def test_a_struct_packs_and_unpacks_its_fields(lua, endian):
    chosen = random.Random(endian)
    work = lua(STRUCT)
    assert work("size", endian) == 18
    for _ in range(30):
        values = (
            chosen.randrange(1 << 8),
            chosen.randrange(1 << 24),
            chosen.randrange(-(1 << 15), 1 << 15),
            chosen.randbytes(4),
            chosen.randrange(-(1 << 63), 1 << 63),
        )
        packed = _packed(endian, values)
        assert work("pack", endian, *values) == packed
        names = ("kind", "size", "delta", "tag", "id")
        assert work("unpack", endian, packed) == dict(zip(names, values, strict=True))
        assert work("again", endian, b"xyz" + packed + b"zyx", 3) == packed


def test_a_struct_refuses_bytes_that_do_not_reach(lua):
    work = lua(STRUCT)
    assert work("unpack", "big", bytes(17)) == [
        None,
        b"18 bytes at offset 0 are outside the 17 there are",
    ]
    assert work("unpack", "big", bytes(20), 3)[0] is None
    assert work("unpack", "big", bytes(20), -1)[0] is None
    assert work("unpack", "big", bytes(20), 2)["kind"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1, 2, 3, b"abcd"), "the field id is missing"),
        ((256, 2, 3, b"abcd", 5), "unsigned overflow"),
        ((1, 2, 3, b"abcde", 5), "longer than given size"),
    ],
)
def test_a_struct_refuses_values_that_do_not_fit(lua, values, message):
    with pytest.raises(LuaError, match=message):
        lua(STRUCT)("pack", "big", *values)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("{ {'a'} }", "field 1 of the layout is no name and format"),
        ("{ {'a', 'B'}, 'b' }", "field 2 of the layout is no name and format"),
        ("{ {'a', 's'} }", 'field a has the format "s", which has no fixed size'),
        ("{ {'a', 'I9'} }", "field a has the format"),
        ("{ {'a', 'BB'} }", "field a has the format"),
        ("{ {'a', 'd'} }", "field a has the format"),
        ("{ endian = '=' }", 'endian is "<" or ">"'),
    ],
)
def test_a_wrong_layout_raises_an_error(lua, layout, message):
    work = lua(f"local struct = require 'struct' function work() struct({layout}) end")
    with pytest.raises(LuaError, match=f"library:[0-9]+: {message}"):
        work()
