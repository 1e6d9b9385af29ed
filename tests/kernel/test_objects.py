"""Shared objects and error values on their way between runtimes."""

from __future__ import annotations

import time

import pytest

from bridge.errors import LuaError

pytestmark = pytest.mark.kernel

both_kinds = pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])


@pytest.fixture
def child(tmp_path_factory):
    """Write a script below a Lua root of its own, and load the module with that root."""
    from bridge.lunatik import Lunatik

    root = tmp_path_factory.mktemp("root")

    def write(source: str, name: str = "child") -> None:
        (root / f"{name}.lua").write_text(source)

    with Lunatik.load(root=root, body_time=600_000) as lunatik:

        def drive(source: str, *, child: str, sleep: bool) -> object:
            write(child)
            kind = "true" if sleep else "false"
            body = f"coroutine.yield() local kind = {kind} {source}"
            with lunatik.runtime("driver", source=body) as runtime:
                return runtime.resume()

        yield drive


ECHO = """
local v = table.pack(coroutine.yield())
while true do v = table.pack(coroutine.yield(table.unpack(v, 1, v.n))) end
"""


@both_kinds
def test_objects_cross_in_both_directions_and_stay_the_same(child, sleep):
    source = """
    local rcu, data = require "rcu", require "data"
    local rt = lunatik.runtime("child", kind)
    local d, t = data.new(4), rcu.table()
    local a, b, c, e = rt:resume(d, 7, t, lunatik._ENV)
    assert(a == d and b == 7 and c == t and e == lunatik._ENV)
    a:setuint8(0, 200)
    assert(d:getuint8(0) == 200)
    rt:stop()
    assert(a:getuint8(0) == 200)
    return "done"
    """
    assert child(source, child=ECHO, sleep=sleep) == b"done"


@both_kinds
def test_an_object_outlives_its_maker(child, sleep):
    source = """
    local rt = lunatik.runtime("child", kind)
    local d = rt:resume()
    rt:stop()
    rt = nil
    collectgarbage()
    return d:getstring(0)
    """
    maker = """
    local data = require "data"
    coroutine.yield()
    local d = data.new(4)
    d:setstring(0, "made")
    return d
    """
    assert child(source, child=maker, sleep=sleep) == b"made"


@both_kinds
def test_what_cannot_cross_names_its_position_and_type_and_leaves_both_going(child, sleep):
    source = """
    local rt = lunatik.runtime("child", kind)
    local data = require "data"
    for _, case in ipairs{{ {}, "table" }, { print, "function" }, { rt, "runtime" },
                          { coroutine.create(print), "thread" }} do
      local ok, message = pcall(rt.resume, rt, data.new(1), nil, case[1])
      local expected = "value #3 is a " .. case[2] .. ", and only nil, booleans, integers, " ..
        "strings and shared objects cross runtimes"
      assert(not ok and message:find(expected, 1, true), message)
      assert(rt:resume("on") == "on")
    end
    local ok, message = pcall(rt.resume, rt, "make")
    assert(not ok and message:find("value #2 is a table", 1, true), message)
    return rt:resume("on")
    """
    echo = """
    local v = coroutine.yield()
    while true do
      if v == "make" then v = coroutine.yield(v, {}) else v = coroutine.yield(v) end
    end
    """
    assert child(source, child=echo, sleep=sleep) == b"on"


@both_kinds
def test_objects_do_not_cross_to_user_space_and_the_script_stays_resumable(script, sleep):
    runtime = script(
        """
        coroutine.yield()
        coroutine.yield(1, require("data").new(4))
        coroutine.yield(true, nil, lunatik._ENV)
        return "on"
        """
        if sleep
        else """
        local data = require "data"
        coroutine.yield()
        coroutine.yield(1, data.new(4))
        coroutine.yield(true, nil, lunatik._ENV)
        return "on"
        """,
        sleep=sleep,
    )
    ends = "and shared objects cross between runtimes only, not to user space"
    with pytest.raises(LuaError, match=f"value #2 is a data, {ends}"):
        runtime.resume()
    with pytest.raises(LuaError, match=f"value #3 is a rcu.table, {ends}"):
        runtime.resume()
    assert runtime.resume() == b"on"


@pytest.mark.parametrize(
    "value", ["nil", "true", "false", "0", "math.mininteger", "'text'", "''", "'a\\0b'", "'1'"]
)
@both_kinds
def test_an_error_value_that_can_cross_arrives_as_it_is(child, sleep, value):
    source = f"""
    local rt = lunatik.runtime("child", kind)
    local ok, what = pcall(rt.resume, rt)
    local expected = {value}
    assert(not ok and what == expected and type(what) == type(expected), tostring(what))
    local ok, message = pcall(rt.resume, rt)
    assert(not ok and message:find("its script has failed"), message)
    return "done"
    """
    assert child(source, child=f"coroutine.yield() error({value}, 0)", sleep=sleep) == b"done"


@both_kinds
def test_an_object_as_error_value_arrives_as_itself(child, sleep):
    source = """
    local d = require("data").new(1)
    local rt = lunatik.runtime("child", kind)
    local ok, what = pcall(rt.resume, rt, d)
    assert(not ok and what == d)
    return "done"
    """
    assert child(source, child="error((coroutine.yield()))", sleep=sleep) == b"done"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{}", "^table: %x+ %(the error value is a table%)$"),
        ("print", "^function: .* %(the error value is a function%)$"),
        (
            "setmetatable({}, {__tostring = function() return 'told' end})",
            "^told %(the error value is a table%)$",
        ),
        ("('x'):rep(61441)", "^x+$"),
    ],
)
@both_kinds
def test_an_error_value_that_cannot_cross_arrives_as_text_with_its_type(
    child, sleep, value, message
):
    source = f"""
    local rt = lunatik.runtime("child", kind)
    local ok, what = pcall(rt.resume, rt)
    assert(not ok and type(what) == "string" and what:find({message!r}), what)
    return "done"
    """
    assert child(source, child=f"coroutine.yield() error({value}, 0)", sleep=sleep) == b"done"


@both_kinds
def test_error_values_reach_whoever_creates_the_runtime(child, sleep):
    source = """
    local ok, what = pcall(lunatik.runtime, "child", kind)
    return ok, what
    """
    assert child(source, child="error(42)", sleep=sleep) == (False, 42)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nil", "nil"),
        ("5", "5"),
        ("false", "false"),
        ("{}", r"table: [0-9a-f]+ \(the error value is a table\)"),
        ("require('data').new(1)", r"data: [0-9a-f]+ \(the error value is a data\)"),
    ],
)
def test_user_space_gets_the_text_of_an_error_value(script, value, message):
    with pytest.raises(LuaError, match=f"^{message}"):
        script(f"error({value}, 0)")


def test_a_runtime_collected_near_the_end_of_the_stack_stops_soon(lunatik):
    source = """
    local held = { lunatik.runtime("echo") }
    local depth, deepest = 0, nil
    local function deep()
      depth = depth + 1
      local mine = depth
      pcall(string.gsub, "a", "a", deep)
      deepest = deepest or mine
      if mine == deepest - 2 then -- at the very end not even a finalizer is called
        held[1] = nil
        collectgarbage()
      end
    end
    deep()
    assert(not held[1])
    coroutine.yield()
    """
    with lunatik.runtime("deep", source=source):
        for _ in range(100):
            if lunatik.info().runtimes == 1:
                break
            time.sleep(0.05)
        assert lunatik.info().runtimes == 1


@both_kinds
def test_results_that_find_no_memory_leave_the_driver_going(child, sleep):
    source = """
    local rt = lunatik.runtime("child", kind)
    local fill, n = nil, 0
    for _ = 1, 3 do -- a list, since a table that grows leaves room when it cannot
      collectgarbage()
      pcall(function() while true do n = n + 1 fill = { fill, ("x"):rep(500) .. n } end end)
    end
    for _ = 1, 30 do fill = fill[1] end
    local ok, message = pcall(rt.resume, rt)
    fill = nil
    assert(not ok and message:find("not enough memory"), message)
    return rt:resume()
    """
    maker = """
    coroutine.yield()
    coroutine.yield(("y"):rep(60000))
    return "on"
    """
    assert child(source, child=maker, sleep=sleep) == b"on"
