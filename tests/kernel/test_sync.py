"""fifo, completion, mailbox, counter and byteorder: what runtimes do together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bridge.errors import LuaError, ModuleError
from bridge.lunatik import Lunatik, Runtime

pytestmark = pytest.mark.kernel

both_kinds = pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])


# Longer than any test waits, on a machine of any speed.
BODY_WAIT_MS = 600_000


@pytest.fixture
def lunatik() -> Iterator[Lunatik]:
    with Lunatik.load(body_wait=BODY_WAIT_MS) as loaded:
        yield loaded


class Caller(threading.Thread):
    """Resume a runtime in a thread and a connection of its own."""

    def __init__(self, runtime: Runtime, *args: Any) -> None:
        super().__init__(daemon=True)
        # Asked here: the runtime's connection is not for two threads.
        self._info, self._args = runtime.info(), args
        self.result: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        connection = Lunatik.connect()
        try:
            self.result = Runtime(connection, self._info).resume(*self._args)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            connection.close()

    def end(self) -> None:
        """Wait for the call's end; fails if there is none."""
        self.join(timeout=30)
        assert not self.is_alive(), "the call goes on"


def _until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; fails if it never is."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came to that")


def _waits(runtime: Runtime) -> bool:
    """Whether the script runs, which for one that waits means that it waits."""
    from bridge.lunatik import State

    return runtime.info().state is State.RUNNING


class TestFifo:
    @both_kinds
    def test_bytes_come_out_in_the_order_they_went_in(self, script, sleep):
        script(
            """
            local q = require("fifo").new(10)
            local sent, got, n = "", "", 0
            for i = 1, 300 do
              local s = string.char(i % 256, (i * 7) % 256, 0):sub(1, i % 4)
              q:push(s)
              sent = sent .. s
              local out, len = q:pop(i % 3 == 0 and 10 or 2)
              assert(#out == len)
              got = got .. out
            end
            got = got .. q:pop(10)
            assert(got == sent)
            local out, len = q:pop(5)
            assert(out == "" and len == 0)
            assert(q:pop(0) == "")
            """,
            sleep=sleep,
        )

    @both_kinds
    def test_messages_stay_whole(self, script, sleep):
        script(
            """
            local q = require("fifo").new(2000)
            local messages = {"", "a", "\\0", ("x"):rep(300), ("y"):rep(1000)}
            assert(q:receive() == nil)
            for round = 1, 30 do
              for _, m in ipairs(messages) do q:send(m) end
              for _, m in ipairs(messages) do assert(q:receive() == m) end
            end
            assert(q:receive() == nil)
            """,
            sleep=sleep,
        )

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("fifo.new(0)", "a fifo has 1 to 65536 bytes"),
            ("fifo.new(-1)", "a fifo has 1 to 65536 bytes"),
            ("fifo.new(65537)", "a fifo has 1 to 65536 bytes"),
            ("fifo.new()", "number expected, got no value"),
            ("q:push('12345678901')", "no room for 11 bytes: 10 of 10 are free"),
            ("q:push('1234') q:push('1234567')", "no room for 7 bytes: 6 of 10 are free"),
            ("q:send('1234567')", "no room for 11 bytes: 10 of 10 are free"),
            ("q:pop(-1)", "a number of bytes is not negative"),
            ("q:pop()", "number expected, got no value"),
            ("q:push()", "string expected, got no value"),
            ("q:push('123') q:receive()", "push and send do not mix"),
            ("q:push('\\255\\255\\255\\255') q:receive()", "push and send do not mix"),
            ("q:close() q:close() q:push('')", "the fifo is closed"),
            ("q:close() q:send('')", "the fifo is closed"),
            ("q:close() q:pop(1)", "the fifo is closed"),
            ("q:close() q:receive()", "the fifo is closed"),
            ("q.push({}, '')", "fifo expected, got table"),
        ],
    )
    def test_misuse_is_refused(self, script, source, message):
        with pytest.raises(LuaError, match=message):
            script(f"local fifo = require 'fifo' local q = fifo.new(10) {source}")

    def test_nothing_is_lost_where_memory_ends(self, script):
        script(
            """
            local q = require("fifo").new(65536)
            q:send(("m"):rep(60000))
            local fill, n = nil, 0
            for _ = 1, 3 do -- a list, since a table that grows leaves room when it cannot
              collectgarbage()
              pcall(function()
                while true do n = n + 1 fill = { fill, ("x"):rep(500) .. n } end
              end)
            end
            for _ = 1, 30 do fill = fill[1] end
            local ok, message = pcall(q.receive, q)
            fill = nil
            assert(not ok and message:find("not enough memory"), message)
            assert(#q:receive() == 60000)
            """
        )


class TestCompletion:
    def test_a_wait_ends_when_another_runtime_completes(self, script):
        waiter = script(
            """
            lunatik._ENV.done = require("completion").new()
            coroutine.yield()
            return lunatik._ENV.done:wait()
            """
        )
        call = Caller(waiter)
        _until(lambda: _waits(waiter))
        script("lunatik._ENV.done:complete() lunatik._ENV.done = nil", sleep=False)
        call.end()
        assert (call.result, call.error) == (True, None)

    def test_completions_count_and_need_nobody_waiting(self, script):
        runtime = script(
            """
            local c = require("completion").new()
            for _ = 1, 3 do c:complete() end
            for _ = 1, 3 do assert(c:wait() == true) end
            coroutine.yield()
            local done, why = c:wait(20)
            assert(done == nil and why == "timeout")
            done, why = c:wait(0)
            assert(done == nil and why == "timeout")
            c:complete()
            return c:wait(0)
            """
        )
        assert runtime.resume() is True

    @pytest.mark.parametrize("arguments", ["", "0", "100"])
    def test_a_runtime_that_cannot_sleep_cannot_wait(self, script, arguments):
        with pytest.raises(LuaError, match="waiting sleeps, and this runtime is not sleepable"):
            script(f"require('completion').new():wait({arguments})", sleep=False)

    def test_misuse_is_refused(self, script):
        for source, message in [
            ("c:wait(-1)", "a time is not negative"),
            ("c:wait('x')", "number expected, got string"),
            ("c.wait({})", "completion expected, got table"),
        ]:
            with pytest.raises(LuaError, match=message):
                script(f"local c = require('completion').new() {source}")

    def test_waiting_costs_no_budget(self, lunatik):
        with lunatik.runtime(
            "patient", source="return require('completion').new():wait(1500)"
        ) as runtime:
            assert runtime.info().last_error is None

    def test_all_waits_of_a_call_together_have_a_limit(self):
        source = """
        local c = require("completion").new()
        while true do
          coroutine.yield()
          for _ = 1, 4 do
            local done, why = c:wait(100)
            assert(done == nil and why == "timeout")
          end
          c:complete()
          assert(c:wait() == true)
          local ok, message = pcall(c.wait, c)
          local limit = "the call has waited as long as it may"
          assert(not ok and message:find(limit, 1, true), message)
          ok, message = pcall(c.wait, c, 1)
          assert(not ok and message:find(limit, 1, true), message)
          local done, why = c:wait(0)
          assert(done == nil and why == "timeout")
          c:complete()
          assert(c:wait() == true)
        end
        """
        with Lunatik.load(body_wait=1000) as lunatik, lunatik.runtime("w", source=source) as w:
            assert w.resume() is None
            assert w.resume() is None

    def test_stop_ends_a_wait(self, script):
        waiter = script("coroutine.yield() require('completion').new():wait()")
        call = Caller(waiter)
        _until(lambda: _waits(waiter))
        waiter.stop()
        call.end()
        assert "the runtime is being stopped" in str(call.error)

    def test_stop_ends_a_wait_that_pcall_would_begin_again(self, script):
        waiter = script(
            """
            local c = require("completion").new()
            coroutine.yield()
            while true do pcall(c.wait, c) end
            """
        )
        call = Caller(waiter)
        _until(lambda: _waits(waiter))
        waiter.stop()
        call.end()
        assert "instruction budget exceeded" in str(call.error)

    def test_stopping_the_driver_ends_the_wait_of_what_it_drives(self, lunatik, tmp_path):
        (tmp_path / "w.lua").write_text("coroutine.yield() require('completion').new():wait()")
        (tmp_path / "at_once.lua").write_text("require('completion').new():wait()")
        lunatik.close()
        with Lunatik.load(root=tmp_path, body_wait=BODY_WAIT_MS) as loaded:
            for source in (
                "local rt = lunatik.runtime('w') coroutine.yield() rt:resume()",
                "coroutine.yield() lunatik.runtime('at_once')",
            ):
                driver = loaded.runtime("driver", source=source)
                call = Caller(driver)
                _until(lambda driver=driver: _waits(driver))
                driver.stop()
                call.end()
                assert "the runtime is being stopped" in str(call.error)
            assert loaded.info().runtimes == 0

    def test_another_caller_waits_for_its_turn_and_can_be_killed(self, script):
        waiter = script(
            """
            lunatik._ENV.done = require("completion").new()
            coroutine.yield()
            while true do coroutine.yield(lunatik._ENV.done:wait()) end
            """
        )
        first = Caller(waiter)
        _until(lambda: _waits(waiter))
        resume = f"""
from bridge.lunatik import Lunatik
lunatik = Lunatik.connect()
print("ready", flush=True)
from bridge.netlink import Command, pack_values
lunatik.request(Command.RESUME, [("LUNATIK_A_ID", {waiter.id}),
                                 ("LUNATIK_A_VALUES", pack_values(()))])
"""
        with subprocess.Popen(["/usr/bin/python3", "-c", resume], stdout=-1) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=0.5)
            second.kill()
            assert second.wait(timeout=30) == -signal.SIGKILL
        script("lunatik._ENV.done:complete() lunatik._ENV.done = nil", sleep=False)
        first.end()
        assert first.result is True

    def test_lua_that_drives_a_waiting_runtime_is_told_that_it_is_busy(self, lunatik, tmp_path):
        (tmp_path / "w.lua").write_text(
            "lunatik._ENV.done = require('completion').new() coroutine.yield() "
            "return lunatik._ENV.done:wait()"
        )
        lunatik.close()
        with Lunatik.load(root=tmp_path, body_wait=BODY_WAIT_MS) as loaded:
            driver = loaded.runtime(
                "driver",
                source="""
                local rt = lunatik.runtime("w")
                coroutine.yield()
                for _, call in ipairs{rt.resume, rt.stop} do
                  local ok, message = pcall(call, rt)
                  assert(not ok and message:find("is busy: somebody else runs it"), message)
                end
                coroutine.yield("busy")
                """,
            )
            waiter = next(r for r in loaded.runtimes() if r.name == "w")
            call = Caller(Runtime(loaded, waiter))
            _until(lambda: _waits(Runtime(loaded, waiter)))
            assert driver.resume() == b"busy"
            loaded.runtime("c", source="lunatik._ENV.done:complete()", sleep=False).stop()
            call.end()
            assert call.result is True
            driver.stop()

    def test_a_signal_interrupts_a_wait(self, script):
        source = "coroutine.yield() return require('completion').new():wait()"
        waiter = script(source)
        resume = f"""
import signal
from bridge.lunatik import Lunatik
from bridge.netlink import Command, pack_values, unpack_values
signal.signal(signal.SIGUSR1, lambda *_: None)
lunatik = Lunatik.connect()
reply = lunatik.request(Command.RESUME, [("LUNATIK_A_ID", {waiter.id}),
                                         ("LUNATIK_A_VALUES", pack_values(()))])
print(unpack_values(reply[0]))
"""
        with subprocess.Popen(["/usr/bin/python3", "-c", resume], stdout=-1) as caller:
            _until(lambda: _waits(waiter))
            os.kill(caller.pid, signal.SIGUSR1)
            assert caller.communicate(timeout=30)[0] == b"(None, b'interrupt')\n"

    def test_a_namespace_goes_away_under_a_wait(self, lunatik):
        from netns import Topology

        with Topology.router() as topology:
            waiter = lunatik.runtime(
                "waiter",
                source="coroutine.yield() require('completion').new():wait()",
                netns=topology["router"].netns,
            )
            call = Caller(waiter)
            _until(lambda: _waits(waiter))
        call.end()
        assert "the runtime is being stopped" in str(call.error)
        _until(lambda: lunatik.info().runtimes == 0)
        with pytest.raises(ModuleError):
            waiter.info()


class TestMailbox:
    def test_messages_reach_the_receiver_in_order(self, script):
        receiver = script(
            """
            local mailbox = require "mailbox"
            local inbox = mailbox.inbox(1000)
            lunatik._ENV.queue, lunatik._ENV.event = inbox.queue, inbox.event
            coroutine.yield()
            local got = {}
            repeat
              local m = inbox:receive()
              got[#got + 1] = m
            until m == "end"
            local nothing, why = inbox:receive(10)
            assert(nothing == nil and why == "timeout")
            return table.unpack(got)
            """
        )
        call = Caller(receiver)
        script(
            """
            local outbox = require("mailbox").outbox(lunatik._ENV.queue, lunatik._ENV.event)
            for _, m in ipairs{"one", "", "\\0two", ("3"):rep(500), "end"} do outbox:send(m) end
            """,
            sleep=False,
        )
        call.end()
        assert call.result == (b"one", b"", b"\0two", b"3" * 500, b"end")
        script("lunatik._ENV.queue, lunatik._ENV.event = nil, nil")

    def test_a_full_mailbox_refuses_and_keeps_what_it_has(self, script):
        script(
            """
            local box = require("mailbox").inbox(20)
            local out = require("mailbox").outbox(box.queue, box.event)
            out:send("first")
            local ok, message = pcall(out.send, out, ("x"):rep(20))
            assert(not ok and message:find("no room"), message)
            assert(box:receive() == "first")
            assert(select(2, box:receive(0)) == "timeout")
            """
        )

    def test_two_receivers_share_the_messages(self, script):
        receive = """
        local inbox = require("mailbox").inbox(lunatik._ENV.queue, lunatik._ENV.event)
        coroutine.yield()
        local n, sum = 0, 0
        while true do
          local m = inbox:receive()
          if m == "end" then return n, sum end
          n, sum = n + 1, sum + tonumber(m)
        end
        """
        script(
            """
            local box = require("mailbox").inbox(60000)
            lunatik._ENV.queue, lunatik._ENV.event = box.queue, box.event
            """
        )
        first, second = script(receive), script(receive)
        calls = Caller(first), Caller(second)
        script(
            """
            local out = require("mailbox").outbox(lunatik._ENV.queue, lunatik._ENV.event)
            for i = 1, 2000 do out:send(tostring(i)) end
            out:send("end") out:send("end")
            """,
            sleep=False,
        )
        for call in calls:
            call.end()
            assert call.error is None
        assert sum(call.result[0] for call in calls) == 2000
        assert sum(call.result[1] for call in calls) == 2000 * 2001 // 2
        script("lunatik._ENV.queue, lunatik._ENV.event = nil, nil")


@both_kinds
def test_a_counter_adds_up(script, sleep):
    script(
        """
        local c = require("counter").new()
        assert(c:get() == 0)
        c:add() c:add(5) c:add(-7)
        assert(c:get() == -1)
        c:add(math.mininteger)
        assert(c:get() == math.maxinteger)
        assert(not pcall(c.add, c, "x") and not pcall(c.add, {}, 1))
        """,
        sleep=sleep,
    )


def test_byteorder_converts_as_its_names_say(script):
    import struct

    runtime = script(
        """
        local order = require "byteorder"
        local name, value = coroutine.yield()
        while true do name, value = coroutine.yield(order[name](value)) end
        """
    )
    for bits, code in ((16, "H"), (32, "I"), (64, "Q")):
        value = 0x8899AABBCCDDEEFF >> 64 - bits
        signed = value - (1 << 64) if value >= 1 << 63 else value
        for pattern, sign in [
            ("hton{}", ">"),
            ("ntoh{}", ">"),
            ("htobe{}", ">"),
            ("be{}toh", ">"),
            ("htole{}", "<"),
            ("le{}toh", "<"),
        ]:
            (expected,) = struct.unpack("=" + code, struct.pack(sign + code, value))
            got = runtime.resume(pattern.format(bits), signed)
            assert got % (1 << 64) == expected, (pattern, bits)


def test_byteorder_refuses_an_integer_of_more_bits(script):
    for call in ("hton16(65536)", "le16toh(-1)", "htobe32(1 << 32)", "ntoh32(-5)"):
        with pytest.raises(LuaError, match="the integer has more bits"):
            script(f"require('byteorder').{call}")
