"""What hooks count, and the one reading that tells all of it."""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge import cli
from bridge.errors import LuaError, ModuleError
from bridge.testing import sanitizers

pytestmark = pytest.mark.kernel

TIMING = Path("/sys/module/lunatik/parameters/timing")
PORTS = {"accept": 9, "drop": 10, "queue": 11, "error": 12, "loop": 13}
FAMILY_INET, HOOK_LOCAL_OUT = 1, 3
CHOOSE = """
local nf = require "netfilter"
local ACTION = nf.action
nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = PRIORITY,
            onerror = "drop", EXTRA hook = function(skb)
  local port = skb:u16(22)
  if port == 10 then return ACTION.DROP end
  if port == 11 then return ACTION.QUEUE end
  if port == 12 then error("on purpose") end
  if port == 13 then while true do end end
  return ACTION.ACCEPT
end}
"""
SENDER = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
for _ in range(int(sys.argv[4])):
    try:
        s.sendto(b"x", (sys.argv[2], int(sys.argv[3])))
    except PermissionError:  # what a drop at LOCAL_OUT is to the sender
        pass
"""


def _source(priority: int = 0, extra: str = "") -> str:
    return CHOOSE.replace("PRIORITY", str(priority)).replace("EXTRA", extra)


def _many(hooks: int) -> str:
    return "\n".join(f"do {_source(priority=n)} end" for n in range(hooks))


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    with router["server"].socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as taker:
        taker.bind(("", PORTS["accept"]))
        yield


@pytest.fixture
def send(router):
    def sent(what: str, packets: int, cpu: int = 0) -> None:
        address, port = router["server"].address(), str(PORTS[what])
        argv = [sys.executable, "-c", SENDER, str(cpu), address, port, str(packets)]
        router["client"].run(argv)

    return sent


@pytest.fixture
def choosing(script, router):
    return script(_source(), name="choosing", sleep=False, netns=router["client"].netns)


@contextmanager
def _timing():
    TIMING.write_text("1")
    try:
        yield
    finally:
        TIMING.write_text("0")


def test_a_hook_tells_its_place(script, router):
    runtime = script(
        _source(-7, "mark = 5,"), name="placed", sleep=False, netns=router["client"].netns
    )
    (hook,) = runtime.hooks()
    assert (hook.runtime_id, hook.runtime_name) == (runtime.id, "placed")
    assert (hook.pf, hook.hooknum, hook.priority) == (FAMILY_INET, HOOK_LOCAL_OUT, -7)
    assert (hook.mark, hook.ifindex, hook.on_error) == (5, None, "drop")
    assert hook.packets == 0
    assert hook.histogram == ()


def test_packets_are_counted_by_verdict_and_failure(choosing, send):
    for what, packets in (("accept", 5), ("drop", 4), ("queue", 3), ("error", 2)):
        send(what, packets)
    send("loop", 1)
    (hook,) = choosing.hooks()
    assert hook.packets == 15
    # the failure rule of this hook drops
    assert (hook.accepted, hook.dropped, hook.queued) == (5, 7, 3)
    assert (hook.errors, hook.budget_hits, hook.reentered) == (3, 1, 0)
    info = choosing.info()
    assert (info.calls, info.errors) == (15, 3)


def test_a_body_over_its_budget_is_no_budget_hit_of_a_hook(script, router, send):
    source = _source() + "coroutine.yield() while true do end"
    runtime = script(source, sleep=False, netns=router["client"].netns)
    with pytest.raises(LuaError, match="budget exceeded"):
        runtime.resume()
    send("error", 1)
    (hook,) = runtime.hooks()
    assert (hook.errors, hook.budget_hits) == (1, 0)


def test_a_budget_that_is_used_up_outside_the_interpreter_is_hit_too(script, router, send):
    source = _source().replace(
        "while true do end", "while true do table.move(t, 1, 999, 2) end"
    )
    runtime = script("local t = {1}\n" + source, sleep=False, netns=router["client"].netns)
    send("loop", 1)
    assert runtime.hooks()[0].budget_hits == 1


def test_the_counts_of_all_cpus_are_added_up(script, router, send):
    runtime = script(_source(), sleep=False, percpu=True, netns=router["client"].netns)
    send("accept", 10, cpu=0)
    send("accept", 5, cpu=1)
    send("error", 1, cpu=1)
    (hook,) = runtime.hooks()
    assert (hook.packets, hook.accepted, hook.dropped, hook.errors) == (16, 15, 1, 1)


def test_callbacks_are_timed_only_when_asked_for(choosing, send):
    send("accept", 10)
    (hook,) = choosing.hooks()
    assert (hook.time_ns, hook.histogram) == (0, ())
    assert TIMING.read_text() == "N\n"
    with _timing():
        assert TIMING.read_text() == "Y\n"
        send("accept", 20)
        send("loop", 1)
        send("error", 3)
    send("accept", 5)
    (hook,) = choosing.hooks()
    assert hook.packets == 39
    assert len(hook.histogram) == 32
    assert sum(hook.histogram) == 24
    slowest = max(n for n, count in enumerate(hook.histogram) if count)
    assert slowest >= 21, "a callback without end is met after two periods of 4 ms"
    least = sum(count << n for n, count in enumerate(hook.histogram) if n)
    assert least <= hook.time_ns < 2 * (least + 24)


def test_a_script_that_takes_over_counts_on(choosing, send):
    send("accept", 5)
    send("error", 1)
    (before,) = choosing.hooks()
    choosing.replace("next", source=_source())
    send("drop", 2)
    (after,) = choosing.hooks()
    assert (after.number, after.runtime_name) == (before.number, "next")
    assert (after.packets, after.accepted, after.dropped, after.errors) == (8, 5, 3, 1)


def test_a_takeover_that_is_undone_leaves_the_counts(script, router, send):
    source = _source().replace("local port", "count = (count or 0) + 1 local port")
    source += "function handover() return count end"
    runtime = script(source, sleep=False, percpu=True, netns=router["client"].netns)
    send("accept", 5, cpu=0)
    send("accept", 6, cpu=1)
    (before,) = runtime.hooks()
    # the first CPU's state has taken over when the second one's refuses to
    refuse = "function takeover(count) if count == 6 then refuse() end end"
    with pytest.raises(LuaError, match="refuse"):
        runtime.replace("next", source=_source() + refuse)
    assert runtime.hooks() == [before]
    send("accept", 1, cpu=1)
    assert runtime.hooks()[0].packets == 12


def test_a_place_that_is_given_up_is_remembered_by_the_runtime_alone(choosing, send):
    send("accept", 5)
    send("error", 1)
    choosing.replace("next", source=_source(priority=3))
    send("accept", 2)
    (hook,) = choosing.hooks()
    assert (hook.priority, hook.packets) == (3, 2)
    info = choosing.info()
    assert (info.calls, info.errors) == (8, 1)


def test_one_reading_tells_of_all_hooks_and_more_than_a_message_holds(lunatik, script, router):
    netns, source = router["client"].netns, _many(40)
    runtimes = [script(source, sleep=False, netns=netns) for _ in range(3)]
    sleepable = script("coroutine.yield()")
    hooks = lunatik.hooks()
    assert [one.runtime_id for one in hooks] == [r.id for r in runtimes for _ in range(40)]
    assert [one.priority for one in hooks] == list(range(40)) * 3
    assert len({one.number for one in hooks}) == 120
    assert runtimes[1].hooks() == hooks[40:80]
    assert sleepable.hooks() == []


def test_the_hooks_of_no_runtime_are_an_error(lunatik, script):
    runtime = script("coroutine.yield()")
    runtime.stop()
    with pytest.raises(ModuleError, match="no runtime has that number") as caught:
        lunatik.hooks(runtime.id)
    assert caught.value.errno == errno.ESRCH


def test_hooks_can_be_read_while_runtimes_come_and_go(lunatik, script, router):
    netns, source = router["client"].netns, _many(12)
    steady = [script(source, sleep=False, netns=netns) for _ in range(2)]
    done = threading.Event()
    failures = []

    def churn() -> None:
        from bridge.lunatik import Lunatik

        try:
            with Lunatik.connect() as other:
                while not done.is_set():
                    with other.runtime("brief", source=source, sleep=False, netns=netns) as one:
                        one.replace("next", source=_source(priority=99))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(sanitizers.fewer(150)):
            seen = [one.number for one in lunatik.hooks()]
            assert len(seen) == len(set(seen))
            mine = [one for one in lunatik.hooks() if one.runtime_id in {s.id for s in steady}]
            assert len(mine) == 24
    finally:
        done.set()
        thread.join()
    assert failures == []


def test_the_command_line_shows_them(choosing, send, capfd):
    send("drop", 4)
    assert cli.run(["stats", "--native", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["runtime_id"], row["dropped"], row["histogram"]) == (choosing.id, 4, [])
    assert cli.run(["stats", "--native"]) == 0
    head, shown = capfd.readouterr().out.splitlines()
    assert dict(zip(head.split(), shown.split(), strict=True))["dropped"] == "4"
    choosing.stop()
    assert cli.run(["stats", "--native"]) == 0
    assert "no hook is in force" in capfd.readouterr().err
