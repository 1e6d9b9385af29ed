"""rcu.table, rcu.map and lunatik._ENV: what runtimes share, and what they may not."""

from __future__ import annotations

import pytest

from bridge.errors import LuaError

pytestmark = pytest.mark.kernel

both_kinds = pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])


@both_kinds
def test_keys_and_values_of_every_kind_are_kept(script, sleep):
    script(
        """
        local rcu, data = require "rcu", require "data"
        local t = rcu.table()
        local keys = {0, -1, 1, math.maxinteger, math.mininteger,
                      "", "1", "a\\0b", ("k"):rep(255)}
        local d, inner = data.new(3), rcu.table()
        local values = {true, false, 0, -1, math.maxinteger, math.mininteger, "", "v\\0\\255",
                        ("v"):rep(128), ("v"):rep(129), ("v"):rep(65536), d, inner}
        for n, value in ipairs(values) do
          for _, key in ipairs(keys) do
            assert(t[key] == values[n - 1])
            t[key] = value
            assert(t[key] == value, tostring(key))
          end
        end
        for _, key in ipairs(keys) do
          t[key] = nil
          assert(t[key] == nil)
          t[key] = nil
        end
        rcu.map(t, error)
        """,
        sleep=sleep,
    )


@pytest.mark.parametrize("buckets", [1, 64, 65, 65536])
def test_any_number_of_buckets_holds_any_number_of_entries(script, buckets):
    script(
        f"""
        local t = require("rcu").table({buckets})
        for i = 1, 2000 do t[i] = i t["k" .. i] = -i end
        for i = 1, 2000, 2 do t[i] = nil end
        for i = 1, 2000 do assert(t[i] == (i % 2 == 0 and i or nil) and t["k" .. i] == -i) end
        local n, sum = 0, 0
        for k, v in pairs(t) do
          assert(v == (type(k) == "number" and k or -tonumber(k:sub(2))))
          n, sum = n + 1, sum + v
        end
        assert(n == 3000 and sum == 1001000 - 2001000)
        """
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rcu.table(0)", "an rcu table has 1 to 65536 buckets"),
        ("rcu.table(65537)", "an rcu table has 1 to 65536 buckets"),
        ("rcu.table(-1)", "an rcu table has 1 to 65536 buckets"),
        ("rcu.table(1 << 32)", "an rcu table has 1 to 65536 buckets"),
        ("rcu.table('x')", "number expected, got string"),
        ("t[true] = 1", "a key of an rcu table is a string or an integer, not a boolean"),
        ("return t[{}]", "a key of an rcu table is a string or an integer, not a table"),
        ("return t[nil]", "a key of an rcu table is a string or an integer, not a nil"),
        ("t[t] = 1", "a key of an rcu table is a string or an integer, not a userdata"),
        ("t[('k'):rep(256)] = 1", "a key of an rcu table has at most 255 bytes"),
        ("t[('k'):rep(256)] = nil", "a key of an rcu table has at most 255 bytes"),
        ("t[1] = {}", "booleans, integers, strings and shared objects, not a table"),
        ("t[1] = print", "booleans, integers, strings and shared objects, not a function"),
        ("t[1] = lunatik.runtime('echo')", "strings and shared objects, not a runtime"),
        ("t[1] = ('v'):rep(65537)", "a string in an rcu table has at most 65536 bytes"),
        ("t[1] = t", "can hold only tables created after it"),
        ("rcu.table()[1] = t", "can hold only tables created after it"),
        ("t.a = rcu.table() t.a[1] = t", "can hold only tables created after it"),
        ("t[1] = lunatik._ENV", "can hold only tables created after it"),
        ("lunatik._ENV.x = lunatik._ENV", "can hold only tables created after it"),
        ("return #t", "attempt to get length of a rcu.table value"),
        ("rcu.map({}, print)", "rcu.table expected, got table"),
        ("rcu.map(t)", "function expected, got no value"),
        ("rcu.map(t, 'x')", "function expected, got string"),
        ("setmetatable(t, {})", "table expected, got rcu.table"),
    ],
)
def test_misuse_is_refused(script, source, message):
    with pytest.raises(LuaError, match=message):
        script(f"local rcu = require 'rcu' local t = rcu.table() {source}")


def test_a_key_too_long_for_any_entry_is_simply_absent(script):
    script("assert(require('rcu').table()[('k'):rep(256)] == nil)")


@both_kinds
def test_map_meets_every_entry_once_whatever_the_function_does(script, sleep):
    script(
        """
        local rcu = require "rcu"
        local t = rcu.table(64)
        for i = 1, 200 do t[i] = i end
        local seen, n = {}, 0
        rcu.map(t, function(k, v)
          assert(not seen[k], "met twice")
          seen[k], n = true, n + 1
          if k <= 200 then
            assert(v == k or v == "changed")
            t[k] = nil
            t[k] = "again"
            t[k + 1000] = k
            if k % 2 == 0 then t[k - 1] = "changed" end
          end
        end)
        for i = 1, 200 do assert(seen[i], i) end
        -- a removed entry that has not been met is not
        n = 0
        rcu.map(t, function(k) n = n + 1 rcu.map(t, function(k) t[k] = nil end) end)
        assert(n == 1)
        """,
        sleep=sleep,
    )


@both_kinds
def test_map_may_raise_and_may_not_yield(script, sleep):
    script(
        """
        local rcu = require "rcu"
        local t = rcu.table()
        for i = 1, 10 do t[i] = ("v"):rep(1000) end
        for _ = 1, 100 do
          local ok, what = pcall(rcu.map, t, function(k, v) error({k}) end)
          assert(not ok and type(what) == "table")
        end
        local co = coroutine.create(function() rcu.map(t, coroutine.yield) end)
        local ok, message = coroutine.resume(co)
        assert(not ok and message:find("attempt to yield across a C%-call boundary"), message)
        local n = 0
        local function walk() for k, v in pairs(t) do coroutine.yield(k, v) end end
        for _ in coroutine.wrap(walk) do n = n + 1 end
        assert(n == 10)
        """,
        sleep=sleep,
    )


def test_the_environment_is_one_for_all_runtimes_and_survives_them(lunatik, script):
    writer = script(
        """
        local env, rcu, data = lunatik._ENV, require "rcu", require "data"
        assert(env == lunatik._ENV)
        env.list = rcu.table()
        env.list[7] = "seven"
        env.buffer = data.new(4)
        env.text, env.count, env.on = "t\\0", -3, false
        """
    )
    reader = """
        local env = lunatik._ENV
        local list, buffer = env.list, env.buffer
        buffer:setuint8(0, buffer:getuint8(0) + 1)
        list[8] = (list[8] or 0) + 1
        assert(list[7] == "seven" and env.text == "t\\0")
        assert(env.count == -3 and env.on == false)
        coroutine.yield()
        return buffer:getuint8(0), list[8]
    """
    writer.stop()
    first, second = script(reader, sleep=False), script(reader)
    assert first.resume() == second.resume() == (2, 2)
    script("for k in pairs(lunatik._ENV) do lunatik._ENV[k] = nil end")
    script("assert(next == next and lunatik._ENV.list == nil)")


def test_the_environment_is_empty_in_a_module_loaded_anew():
    from bridge.lunatik import Lunatik

    with Lunatik.load() as lunatik:
        lunatik.runtime("w", source="lunatik._ENV.left = require('rcu').table()").stop()
    with Lunatik.load() as lunatik:
        lunatik.runtime("r", source="assert(lunatik._ENV.left == nil)").stop()


def test_a_chain_of_tables_of_any_depth_is_released(script):
    # Each holds the next, and only the first is held: releasing must not recurse.
    script(
        """
        local rcu, env = require "rcu", lunatik._ENV
        env.chain = rcu.table(1)
        local t = env.chain
        for i = 1, 5000 do
          local inner = rcu.table(1)
          t.next = inner
          t = inner
        end
        t, env.chain = nil, nil
        """
    )
    # Twice as many would not fit unless the first are gone.
    script(
        """
        local rcu, kept = require "rcu", {}
        for i = 1, 16 do kept[i] = rcu.table(65536) end
        """
    )


def test_a_table_stays_whole_for_its_holder_when_it_is_removed(script):
    holder = script(
        """
        lunatik._ENV.t = require("rcu").table()
        local t = lunatik._ENV.t
        t.x = "still here"
        coroutine.yield()
        assert(lunatik._ENV.t == nil)
        t.y = 5
        return t.x, t.y
        """
    )
    script("lunatik._ENV.t = nil", sleep=False)
    assert holder.resume() == (b"still here", 5)


@both_kinds
def test_a_table_that_outgrows_the_objects_memory_is_refused_more_not_less(script, sleep):
    runtime = script(
        """
        local t = require("rcu").table()
        local n, ok, message = 0
        repeat
          ok, message = pcall(function() t[n + 1] = ("x"):rep(60000) end)
          n = n + (ok and 1 or 0)
        until not ok
        for i = 1, n do assert(#t[i] == 60000) end
        coroutine.yield()
        return message, n
        """,
        sleep=sleep,
    )
    message, n = runtime.resume()
    assert message.endswith(b"not enough memory")
    assert 250 < n < 280


def test_numbers_are_replaced_in_place(script):
    # A hundred thousand replacements, each an entry of its own, would not fit meanwhile.
    script(
        """
        local t = require("rcu").table()
        t.n, t.b = 0, false
        for i = 1, 100000 do t.n = t.n + 1 t.b = not t.b end
        assert(t.n == 100000 and t.b == false)
        """
    )
