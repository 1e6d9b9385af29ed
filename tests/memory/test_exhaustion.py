"""Allocation 1, 2, 3, ... fails, until what was asked for succeeds without it.

Each ends in success or in an error that says what it is, and nothing stays allocated.
The allocation fails alone, so that Lua's second attempt after a collection succeeds;
with the next one, so that Lua raises; and with all that follow. Without --long only
every STRIDE-th is tried.
"""

from __future__ import annotations

import errno
import re
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bridge.errors import LuaError, ModuleError
from bridge.lunatik import GUEST_MODULE, Lunatik
from bridge.testing import sanitizers

pytestmark = pytest.mark.kernel

PARAMETERS = Path("/sys/module/lunatik/parameters")
LENGTHS = (1, 2, 2**31)
STRIDE = 149 if sanitizers.present() else 29
# More than any of these allocates: that nothing is reached any more must come first.
MANY = 20_000
OUT_OF_MEMORY = r"not enough memory|errno 12|Cannot allocate memory|error in error handling"

NESTED = """
local lunatik, data = require "lunatik", require "data"
local kept
while true do
  coroutine.yield()
  local child <close> = lunatik.runtime("echo")
  local sent = data.new(100)
  assert(child:resume(sent, "x", 1, true, nil) == sent)
  pcall(child.resume, child, "fail")
  kept = lunatik.runtime("accept", false)
  kept = nil
  collectgarbage()
end
"""
OBJECTS = """
local rcu, data, fifo = require "rcu", require "data", require "fifo"
local completion, counter = require "completion", require "counter"
while true do
  local t, inner, d = rcu.table(64), rcu.table(64), data.new(100)
  inner.text = ("x"):rep(300)
  t.data, t.n, t.on, t[5], t.inner = d, 1, true, ("s"):rep(100), inner
  t.n, t.on, t[5] = t.n + 1, 7, nil
  assert(t.data == d and t.n == 2 and #t.inner.text == 300)
  rcu.map(t, function(key, value) assert(value ~= nil) end)
  for key in pairs(t) do assert(t[key]) end
  d:resize(300)
  d:setstring(0, inner.text)
  assert(d:getstring(0) == inner.text)
  local q, done, sum = fifo.new(500), completion.new(), counter.new()
  q:send(inner.text)
  assert(q:receive() == inner.text)
  done:complete()
  sum:add(5)
  assert(sum:get() == 5)
  coroutine.yield()
end
"""
COUNTING = """
local text, resumed = ("x"):rep(SIZE), 0
while true do
  coroutine.yield(resumed, text)
  resumed = resumed + 1
end
"""
CALLBACK = """
local nf = require "netfilter"
local kept = {}
nf.register{
  pf = nf.family.IPV4, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0, onerror = "accept",
  hook = function(skb)
    if skb:u8(9) ~= 17 then return nf.action.ACCEPT end
    local text = skb:string(28)
    kept[#kept + 1] = { text, text .. #kept, function() return skb end }
    coroutine.wrap(function() return text:gsub("x", "yz") end)()
    if not pcall(error, {}) then kept = #kept < 3 and kept or {} end
    return nf.action.ACCEPT, #kept
  end,
}
"""


OLD = """
local nf = require "netfilter"
for _, hook in ipairs{nf.inet_hooks.LOCAL_OUT, nf.inet_hooks.LOCAL_IN} do
  nf.register{pf = nf.family.IPV4, hooknum = hook, priority = 0,
              hook = function() return nf.action.ACCEPT end}
end
function handover() return "old", ("x"):rep(1000), 7 end
coroutine.yield()
"""
NEW = """
local nf = require "netfilter"
nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 1,
            hook = function() return nf.action.ACCEPT end}
nf.register{pf = nf.family.IPV4, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
            hook = function() return nf.action.ACCEPT end}
local taken
function takeover(...) taken = table.pack(...) end
coroutine.yield()
return taken.n
"""
SHARED = """
local data, rcu, fifo = require "data", require "rcu", require "fifo"
local counter, completion = require "counter", require "completion"
local child = lunatik.runtime("echo")
local t = rcu.table(16)
for key = 1, 20 do
  t[key] = key % 2 == 0 and ("z"):rep(key) or data.new(key)
  t["s" .. key] = key
end
rcu.map(t, function(key, value) t[key] = nil end)
local f = fifo.new(200)
f:push(("p"):rep(50))
f:pop(20)
local c, n = completion.new(), counter.new()
c:complete()
c:wait(1)
child:resume(t, f, c, n, 1)
lunatik._ENV.tried = t
lunatik._ENV.tried = nil
local kept = {}
for size = 0, 3000, 500 do
  local one = data.new(size)
  kept[#kept + 1] = one
  if size > 0 then one:setstring(0, ("y"):rep(size)) end
  one:resize(size + 100)
  one:getstring(0, #one)
end
coroutine.yield(#kept)
"""


def _life(script: str, sleep: bool) -> Callable[[Lunatik], None]:
    def live(lunatik: Lunatik) -> None:
        with lunatik.runtime(script, sleep=sleep) as runtime:
            runtime.info()

    return live


def _echo(sleep: bool) -> Callable[[Lunatik], None]:
    def echo(lunatik: Lunatik) -> None:
        with lunatik.runtime("echo", sleep=sleep) as runtime:
            sent = ("x" * 100, 1, True, None, b"\0" * 3000)
            assert runtime.resume(*sent) == (b"x" * 100, 1, True, None, b"\0" * 3000)
            with pytest.raises(LuaError, match=f"as asked|{OUT_OF_MEMORY}"):
                runtime.resume("fail")

    return echo


def _replaced(percpu: bool) -> Callable[[Lunatik], None]:
    def replace(lunatik: Lunatik) -> None:
        with lunatik.runtime("old", source=OLD, sleep=False, percpu=percpu) as runtime:
            runtime.replace("new", source=NEW)
            if not percpu:
                assert runtime.resume() == 3

    return replace


def _failed_replacement(lunatik: Lunatik) -> None:
    with lunatik.runtime("old", source=OLD, sleep=False) as runtime:
        with pytest.raises(LuaError, match=f"no good|{OUT_OF_MEMORY}"):
            runtime.replace("new", source="error('no good') " + NEW)
        assert runtime.info().name == "old"


def _shared(lunatik: Lunatik) -> None:
    lunatik.runtime("shared", source=SHARED).stop()


def _nested(lunatik: Lunatik) -> None:
    with lunatik.runtime("nested", source=NESTED) as runtime:
        runtime.resume()


def _objects(sleep: bool) -> Callable[[Lunatik], None]:
    def share(lunatik: Lunatik) -> None:
        with lunatik.runtime("objects", source=OBJECTS, sleep=sleep) as runtime:
            runtime.resume()

    return share


def _callback(lunatik: Lunatik) -> None:
    with (
        lunatik.runtime("callback", source=CALLBACK, sleep=False) as runtime,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        for _ in range(8):
            sender.sendto(b"x" * 200, receiver.getsockname())
            assert receiver.recv(300) == b"x" * 200
        info = runtime.info()
        assert info.calls == 8
        if info.errors:
            raise LuaError(info.last_error or "no message")


def _requests(lunatik: Lunatik) -> None:
    lunatik.info()
    lunatik.runtimes()
    lunatik.hooks()
    with pytest.raises(ModuleError) as caught:
        lunatik.stop(2**31 - 1)
    assert caught.value.errno == errno.ESRCH


def _failing_body(lunatik: Lunatik) -> None:
    with pytest.raises(LuaError, match=f"x{{3000}}|{OUT_OF_MEMORY}"):
        lunatik.runtime("long", source="error(('x'):rep(3000))")


def _told(lunatik: Lunatik) -> None:
    with lunatik.events() as events:
        try:
            with lunatik.runtime("echo") as runtime:
                runtime.resume("x")
        finally:  # once it was read, or lost, nothing of it is in line
            with suppress(ModuleError):
                list(events.until_quiet(0.3))


OPERATIONS = {
    "create, file, sleepable": _life("echo", True),
    "create, hooks and libraries": _life("dns_block", False),
    "resume, sleepable": _echo(True),
    "resume, atomic": _echo(False),
    "runtimes of a runtime": _nested,
    "objects, sleepable": _objects(True),
    "objects, atomic": _objects(False),
    "callback": _callback,
    "info, list and stop": _requests,
    "failing body": _failing_body,
    "life that is told of": _told,
    "replace": _replaced(False),
    "replace, per CPU": _replaced(True),
    "replacement that fails": _failed_replacement,
    "shared objects": _shared,
}


@pytest.fixture(autouse=True)
def _loopback():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.mark.parametrize("length", LENGTHS, ids=["one", "two", "all"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_allocation_that_fails_ends_cleanly(
    lunatik, failure, blocks, *, long_run, name, length, tally
):
    operation = OPERATIONS[name]
    operation(lunatik)
    for number in range(1, MANY, 1 if long_run else STRIDE):
        blocks.reset()
        with failure.of(number, length):
            try:
                operation(lunatik)
            except LuaError as error:
                failed = error.message
            else:
                failed = None
        for runtime in lunatik.runtimes():
            lunatik.stop(runtime.id)
        assert (number, blocks.left()) == (number, [])
        assert (number, lunatik.info().runtimes) == (number, 0)
        assert int(Path("/sys/module/lunatik/refcnt").read_text()) == 0
        assert failed is None or re.search(OUT_OF_MEMORY, failed), (number, failed)
        if not failure.reached:
            break
    assert failed is None
    assert not failure.reached, f"more than {MANY} allocations"
    tally(f"{number - 1} allocations failed in turn")


@pytest.mark.parametrize("length", LENGTHS, ids=["one", "two", "all"])
@pytest.mark.parametrize("size", [10, 10_000], ids=["short", "long"])
@pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])
def test_who_loses_results_learns_that_the_script_ran(lunatik, failure, sleep, size, length):
    source = COUNTING.replace("SIZE", str(size))
    lost = 0
    with lunatik.runtime("counting", source=source, sleep=sleep) as runtime:
        before, _ = runtime.resume()
        for number in range(1, MANY):
            message = ""
            with failure.of(number, length):
                try:
                    runtime.resume()
                except LuaError as error:
                    message = error.message
            after, _ = runtime.resume()
            ran = after - before == 2
            before = after
            told = message.startswith("the script ran, but its results are lost")
            assert told == (ran and bool(message)), (number, ran, message)
            lost += told
            if not failure.reached:
                break
    assert lost > 0


@pytest.mark.parametrize("number", range(1, 12))
def test_loading_without_memory_fails_or_succeeds(number):
    with ExitStack() as stack:
        try:
            lunatik = stack.enter_context(Lunatik.load(fail_allocation=number, fail_length=100))
        except ModuleError as error:
            assert "Cannot allocate memory" in str(error)  # noqa: PT017 - or it is loaded
            assert number < 10
        else:
            (PARAMETERS / "fail_allocation").write_text("0")
            assert lunatik.info().runtimes == 0
    assert not Path("/sys/module/lunatik").exists()


def test_a_failure_shows_when_it_was_reached(lunatik, failure):
    with failure.of(1000, 1):
        lunatik.info()
        assert 990 < int((PARAMETERS / "fail_allocation").read_text()) < 1000
    assert not failure.reached
    with failure.of(1, 1), pytest.raises(LuaError, match=OUT_OF_MEMORY):
        lunatik.runtime("echo")
    assert failure.reached
    with lunatik.runtime("echo") as runtime:
        assert runtime.resume("well") == b"well"


def test_a_block_left_behind_is_noticed(lunatik, blocks):
    subprocess.run(["insmod", GUEST_MODULE.with_name("lunatik_sabotage.ko")], check=True)
    try:
        with lunatik.runtime("leak", source="require('sabotage').leak()"):
            blocks.reset()
            assert blocks.left() == []
        with lunatik.runtime("leak", source="require('sabotage').leak()"):
            pass
        (left,) = blocks.left()
        assert re.fullmatch(
            r"\d+ bytes allocated by sabotage_leak\+0x.*lunatik_sabotage.*", left
        )
    finally:
        subprocess.run(["rmmod", "lunatik_sabotage"], check=True)
