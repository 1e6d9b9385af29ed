"""lunatik.runtime, resume and stop, from Python and from Lua, in both kinds."""

from __future__ import annotations

import errno
import threading

import pytest

from bridge.errors import LuaError, ModuleError
from bridge.lunatik import Lunatik, State

pytestmark = pytest.mark.kernel

both_kinds = pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])


@both_kinds
def test_body_runs_once_at_creation(script, sleep):
    info = script("count = (count or 0) + 1; assert(count == 1)", sleep=sleep).info()
    assert info.state is State.FINISHED
    assert info.sleep is sleep


@both_kinds
def test_resume_passes_values_in_both_directions(script, sleep):
    runtime = script(
        """
        local a, b, c, d, e = coroutine.yield()
        assert(a == "text" and b == -5 and c == true and d == nil and e == "\\0\\255")
        coroutine.yield(a, b, c, d, e)
        return math.maxinteger, math.mininteger, ""
        """,
        sleep=sleep,
    )
    sent = ("text", -5, True, None, b"\0\xff")
    assert runtime.resume(*sent) == (b"text", -5, True, None, b"\0\xff")
    assert runtime.resume() == (2**63 - 1, -(2**63), b"")


@both_kinds
def test_one_result_comes_back_alone_and_none_as_none(script, sleep):
    runtime = script("coroutine.yield() coroutine.yield(7) coroutine.yield()", sleep=sleep)
    assert runtime.resume() == 7
    assert runtime.resume() is None
    assert runtime.resume() is None


@both_kinds
def test_a_returned_script_cannot_be_resumed(script, sleep):
    runtime = script("coroutine.yield() return 'done'", sleep=sleep)
    assert runtime.resume() == b"done"
    with pytest.raises(LuaError, match=r"cannot resume runtime \d+: its script has returned"):
        runtime.resume()


@both_kinds
def test_a_failed_script_cannot_be_resumed(script, sleep):
    runtime = script("coroutine.yield() error('on purpose')", sleep=sleep)
    with pytest.raises(LuaError, match="script:1: on purpose"):
        runtime.resume()
    with pytest.raises(LuaError, match="its script has failed"):
        runtime.resume()
    assert runtime.info().state is State.FAILED
    assert "on purpose" in runtime.info().last_error


@both_kinds
def test_stop_ends_a_runtime_and_stopping_twice_is_harmless(lunatik, script, sleep):
    runtime = script("coroutine.yield()", sleep=sleep)
    runtime.stop()
    runtime.stop()
    with pytest.raises(ModuleError, match="no runtime has the number") as caught:
        runtime.resume()
    assert caught.value.errno == errno.ESRCH
    assert lunatik.info().runtimes == 0


@both_kinds
def test_an_error_carries_message_and_traceback(script, sleep):
    with pytest.raises(LuaError) as caught:
        script("local function inner()\n error('deep')\nend\ninner()", sleep=sleep)
    assert caught.value.message == "script:2: deep"
    assert "script:4: in main chunk" in caught.value.traceback


def test_an_error_value_that_is_no_string_is_described(script):
    with pytest.raises(LuaError, match="table: "):
        script("error({})")
    with pytest.raises(LuaError, match="described"):
        script("error(setmetatable({}, {__tostring = function() return 'described' end}))")


@both_kinds
def test_a_value_that_cannot_cross_names_itself_and_the_script_stays_resumable(script, sleep):
    runtime = script("coroutine.yield() coroutine.yield(1, {}) return 'on'", sleep=sleep)
    with pytest.raises(LuaError, match=r"value #2 is a table"):
        runtime.resume()
    assert runtime.resume() == b"on"


def test_values_python_cannot_send_are_refused_before_the_kernel(script):
    runtime = script("coroutine.yield()")
    with pytest.raises(TypeError, match="a float cannot be passed to Lua"):
        runtime.resume(1.5)
    with pytest.raises(OverflowError, match="64 bits"):
        runtime.resume(2**63)


def test_too_many_and_too_long_values_are_refused(script):
    runtime = script("coroutine.yield() return ('x'):rep(61441)")
    with pytest.raises(ModuleError, match="too many values"):
        runtime.resume(*range(65))
    with pytest.raises(LuaError, match="the strings are too long"):
        runtime.resume()


def test_a_concurrent_resume_waits_for_its_turn(script):
    runtime = script("local n = 0 while true do n = n + (coroutine.yield(n) or 0) end")
    errors: list[Exception] = []

    def add(lunatik_runtime: int) -> None:
        from bridge.lunatik import Lunatik
        from bridge.netlink import Command, pack_values

        try:
            connection = Lunatik.connect()
            for _ in range(50):
                attrs = [
                    ("LUNATIK_A_ID", lunatik_runtime),
                    ("LUNATIK_A_VALUES", pack_values((1,))),
                ]
                connection.request(Command.RESUME, attrs)
            connection.close()
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            errors.append(error)

    threads = [threading.Thread(target=add, args=(runtime.id,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert runtime.resume(0) == 200


USAGE = """
local rt = lunatik.runtime("echo")
-- Assuming 'rt' is a Lunatik runtime object that has yielded.
local success, res_or_err = pcall(function() return rt:resume("arg_to_script") end)
assert(success, res_or_err)
assert(res_or_err == "arg_to_script")
-- Assuming 'rt' is a Lunatik runtime object:
rt:stop()
return success, res_or_err
"""


def test_the_usage_examples_of_the_reference_page_run_verbatim(script):
    runtime = script("coroutine.yield()" + USAGE)
    assert runtime.resume() == (True, b"arg_to_script")


def test_lua_drives_a_runtime_of_either_kind(script):
    runtime = script(
        """
        coroutine.yield()
        for _, kind in ipairs{true, false, "process", "softirq"} do
          local rt = lunatik.runtime("echo", kind)
          assert(rt:resume(1) == 1)
          local a, b, c = rt:resume("x", nil, false)
          assert(a == "x" and b == nil and c == false)
          rt:stop()
          rt:stop()
          local ok, message = pcall(rt.resume, rt)
          assert(not ok and message:find("it is stopped"), message)
        end
        return "done"
        """
    )
    assert runtime.resume() == b"done"


def test_a_lua_error_in_a_driven_runtime_reaches_its_driver(script):
    runtime = script(
        """
        coroutine.yield()
        local rt = lunatik.runtime("echo")
        local ok, message = pcall(rt.resume, rt, "fail")
        return ok, message
        """
    )
    ok, message = runtime.resume()
    assert ok is False
    assert message == b"echo.lua:6: as asked"


def test_a_runtime_object_stops_its_runtime_when_closed_or_collected(lunatik, script):
    runtime = script(
        """
        coroutine.yield()
        do local rt <close> = lunatik.runtime("echo") end
        lunatik.runtime("echo")
        coroutine.yield()
        collectgarbage()
        coroutine.yield()
        """
    )
    runtime.resume()
    assert lunatik.info().runtimes == 2
    runtime.resume()
    assert lunatik.info().runtimes == 1


def test_stopping_the_owner_stops_the_runtimes_it_created(lunatik, script):
    runtime = script("keep = lunatik.runtime('echo') coroutine.yield()")
    assert lunatik.info().runtimes == 2
    runtime.stop()
    assert lunatik.info().runtimes == 0


def test_a_missing_script_is_an_error_in_lua_and_python(lunatik, script):
    with pytest.raises(LuaError, match=r"script 'nowhere' not found: no file .*/nowhere.lua"):
        lunatik.runtime("nowhere")
    with pytest.raises(LuaError, match="script 'nowhere' not found"):
        script("lunatik.runtime('nowhere')")


def test_an_atomic_runtime_cannot_create_runtimes(script):
    with pytest.raises(LuaError, match="creating a runtime sleeps"):
        script("lunatik.runtime('echo')", sleep=False)


def test_an_unknown_kind_of_runtime_is_refused(script):
    with pytest.raises(LuaError, match="invalid option 'hardirq'"):
        script("lunatik.runtime('echo', 'hardirq')")


@both_kinds
def test_an_argument_that_finds_no_memory_leaves_the_script_resumable(sleep):
    source = "coroutine.yield() return 'still here'"
    with (
        Lunatik.load(memory_limit=64 * 1024) as lunatik,
        lunatik.runtime("small", source=source, sleep=sleep) as runtime,
    ):
        with pytest.raises(LuaError, match="not enough memory"):
            runtime.resume("y" * 60_000)
        assert runtime.info().state is State.YIELDED
        assert runtime.resume() == b"still here"


def test_a_script_that_fails_while_its_error_is_described_has_failed(script):
    runtime = script(
        """
        coroutine.yield()
        error(setmetatable({}, {__tostring = function() error("again") end}))
        """
    )
    with pytest.raises(LuaError):
        runtime.resume()
    assert runtime.info().state is State.FAILED
