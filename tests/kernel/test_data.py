"""data: buffers of bytes, their fields in both byte orders, their bounds."""

from __future__ import annotations

import struct

import pytest

from bridge.errors import LuaError

pytestmark = pytest.mark.kernel

both_kinds = pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])

SIZES = (8, 16, 32, 64)
# Lua's suffix of a method, and struct's sign of the same byte order.
ORDERS = {"": "=", "be": ">", "le": "<"}
CODES = {8: "b", 16: "h", 32: "i", 64: "q"}


def _fields() -> list[tuple[str, str, list[int]]]:
    """Methods' suffix, format of struct and some values, the ends of the range included."""
    found = []
    for bits in SIZES:
        for order, sign in ORDERS.items():
            if bits == 8 and order:
                continue
            low = -(1 << bits - 1)
            found += [
                (f"int{bits}{order}", sign + CODES[bits], [low, -1, 0, 1, -low - 1]),
                (f"uint{bits}{order}", sign + CODES[bits].upper(), [0, 1, -2 * low - 1]),
            ]
    return found


def _signed(value: int) -> int:
    """As Lua writes an integer of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


@both_kinds
def test_fields_of_every_size_sign_and_order_are_stored_as_they_should(script, sleep):
    runtime = script(
        """
        local d = require("data").new(16)
        local field, value = coroutine.yield()
        while true do
          d:setstring(0, ("\\xAA"):rep(16))
          d["set" .. field](d, 5, value)
          assert(d["get" .. field](d, 5) == value)
          field, value = coroutine.yield(d:getstring(0))
        end
        """,
        sleep=sleep,
    )
    for name, layout, values in _fields():
        for value in values:
            bytes_ = struct.pack(layout, value)
            expected = b"\xaa" * 5 + bytes_ + b"\xaa" * (11 - len(bytes_))
            assert runtime.resume(name, _signed(value)) == expected, (name, value)


def test_a_value_outside_a_fields_range_is_refused(script):
    runtime = script(
        """
        local d = require("data").new(8)
        local field, value = coroutine.yield()
        while true do
          local ok, message = pcall(d["set" .. field], d, 0, value)
          field, value = coroutine.yield(not ok and message)
          assert(d:getint64(0) == 0)
        end
        """
    )
    for name, layout, values in _fields():
        bits = 8 * struct.calcsize(layout)
        if bits == 64:
            continue
        kind = "an unsigned" if name.startswith("u") else "a signed"
        for value in (min(values) - 1, max(values) + 1, -(2**63), 2**63 - 1):
            expected = f"{value} does not fit {kind} {bits}-bit field"
            assert runtime.resume(name, value) == expected.encode()


@both_kinds
def test_no_access_reaches_outside(script, sleep):
    runtime = script(
        """
        local d = require("data").new(10)
        local method, offset, extra = coroutine.yield()
        while true do
          local ok, message = pcall(d[method], d, offset, extra)
          method, offset, extra = coroutine.yield(not ok and message)
        end
        """,
        sleep=sleep,
    )
    for name, layout, _ in _fields():
        size = struct.calcsize(layout)
        for verb in ("get", "set"):
            assert runtime.resume(verb + name, 10 - size, 0) is False
            for offset in (-1, 10 - size + 1, 10, 2**31, 2**32, 2**63 - 1, -(2**63)):
                expected = f"offset {offset} with {size} bytes is outside the data of 10 bytes"
                assert runtime.resume(verb + name, offset, 0) == expected.encode()
    for method, offset, extra, size in [
        ("getstring", 11, None, 0),
        ("getstring", -1, None, 0),
        ("getstring", 4, 7, 7),
        ("getstring", 4, -1, -1),
        ("getstring", 0, 2**63 - 1, 2**63 - 1),
        ("getstring", 1, 2**63 - 1, 2**63 - 1),
        ("setstring", 8, b"abc", 3),
        ("setstring", -1, b"", 0),
        ("setstring", 11, b"", 0),
        ("checksum", 11, None, 0),
        ("checksum", 2, 9, 9),
    ]:
        expected = f"offset {offset} with {size} bytes is outside the data of 10 bytes"
        assert runtime.resume(method, offset, extra) == expected.encode()
    for method, offset, extra in [
        ("getstring", 10, None),
        ("getstring", 0, 10),
        ("setstring", 10, b""),
        ("checksum", 10, None),
    ]:
        assert runtime.resume(method, offset, extra) is False


def test_bytes_numbers_strings_and_lengths_have_the_usual_names(script):
    script(
        """
        local d = require("data").new(12)
        assert(#d == 12 and d:getstring(0) == ("\\0"):rep(12))
        d:setbyte(0, 255)
        assert(d:getbyte(0) == 255 and d:getint8(0) == -1)
        d:setnumber(1, math.mininteger)
        assert(d:getnumber(1) == math.mininteger and d:getint64(1) == math.mininteger)
        assert(d:setstring(2, "a\\0b") == nil)
        assert(d:getstring(2, 3) == "a\\0b" and d:getstring(12) == "" and #d:getstring(3) == 9)
        """
    )


def test_resize_keeps_what_fits_and_adds_zeros(script):
    script(
        """
        local d = require("data").new(4)
        d:setstring(0, "abcd")
        d:resize(2)
        assert(#d == 2 and d:getstring(0) == "ab" and not pcall(d.getbyte, d, 2))
        d:resize(65536)
        assert(#d == 65536 and d:getstring(0, 5) == "ab\\0\\0\\0" and d:getbyte(65535) == 0)
        d:resize(0)
        assert(#d == 0 and d:getstring(0) == "" and not pcall(d.getbyte, d, 0))
        """
    )


@pytest.mark.parametrize("size", ["-1", "65537", "math.maxinteger", "math.mininteger"])
@pytest.mark.parametrize("call", ["data.new(%s)", "data.new(1):resize(%s)"])
def test_a_size_outside_the_limits_is_refused(script, size, call):
    with pytest.raises(LuaError, match="a data has 0 to 65536 bytes"):
        script(f"local data = require 'data'; {call % size}")


def test_the_checksum_is_that_of_rfc_1071(script):
    runtime = script(
        """
        local data = require "data"
        local bytes, offset, len = coroutine.yield()
        while true do
          local d = data.new(#bytes)
          d:setstring(0, bytes)
          bytes, offset, len = coroutine.yield(d:checksum(offset, len))
        end
        """
    )

    def expected(data: bytes) -> int:
        data += b"\0" * (len(data) % 2)
        total = sum(struct.unpack(f">{len(data) // 2}H", data))
        while total > 0xFFFF:
            total = (total & 0xFFFF) + (total >> 16)
        return ~total & 0xFFFF

    header = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")
    assert runtime.resume(header) == 0
    assert runtime.resume(header[:10] + b"\0\0" + header[12:]) == 0xB861
    sample = bytes(i * 7 & 255 for i in range(1001))
    for offset, size in [(0, 1001), (0, 127), (0, 128), (0, 129), (3, 500), (1000, 1), (7, 0)]:
        assert runtime.resume(sample, offset, size) == expected(sample[offset : offset + size])


def test_what_is_no_data_is_refused(script):
    for source, message in [
        ("d.getint8({}, 0)", "data expected, got table"),
        ("d.getint8(nil, 0)", "data expected, got nil"),
        ("d.getint8(io, 0)", "data expected, got nil"),
        ("d:getint8('x')", "number expected, got string"),
        ("d:setint8(0)", "number expected, got no value"),
        ("d:setint8()", "bad argument #1"),
        ("d:getstring()", "number expected, got no value"),
        ("d.new(1)", "attempt to call a nil value"),
        ("d.x = 1", "attempt to index a data value"),
        ("getmetatable(d).__gc = 1", "attempt to index a string value"),
    ]:
        with pytest.raises(LuaError, match=message):
            script(f"local d = require('data').new(4); {source}")


def test_handles_are_equal_when_their_object_is_and_name_their_class(script):
    script(
        """
        local data = require "data"
        local d = data.new(1)
        assert(d == d and d ~= data.new(1) and d ~= 1)
        assert(tostring(d):find("^data: ") and getmetatable(d) == "data")
        """
    )


@both_kinds
def test_buffers_are_collected_before_they_exhaust_the_objects_memory(script, sleep):
    # 1000 times 64 KiB is four times what all objects may hold.
    script("local data = require 'data' for _ = 1, 1000 do data.new(65536) end", sleep=sleep)


@both_kinds
def test_buffers_that_are_kept_end_at_the_objects_memory(script, sleep):
    runtime = script(
        """
        local data, kept = require "data", {}
        local ok, message
        repeat
          ok, message = pcall(function() kept[#kept + 1] = data.new(65536) end)
        until not ok
        coroutine.yield()
        local n = #kept
        kept = nil
        coroutine.yield(message, n)
        data.new(65536)
        return "again"
        """,
        sleep=sleep,
    )
    message, n = runtime.resume()
    assert message.endswith(b"not enough memory")
    assert 16 * 16 - 8 <= n < 16 * 16
    assert runtime.resume() == b"again"


def test_a_collected_handle_in_a_weak_table_is_void(script):
    script(
        """
        local weak = setmetatable({}, {__mode = "k"})
        for _ = 1, 10 do weak[require("data").new(8)] = true end
        collectgarbage()
        local void = 0
        for d in pairs(weak) do
          void = void + 1
          local ok, message = pcall(d.getbyte, d, 0)
          assert(not ok and message:find("the object has been collected"), message)
        end
        assert(void > 0)
        """
    )
