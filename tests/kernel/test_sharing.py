"""Objects shared by callbacks and scripts at once: no reader sees half of anything."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.lunatik import Lunatik, Runtime, RuntimeInfo
from bridge.testing import sanitizers
from netns import Topology

pytestmark = pytest.mark.kernel

HOOK = """
local nf, env = require "netfilter", lunatik._ENV
local rcu, data, fifo = require "rcu", require "data", require "fifo"
local completion, counter = require "completion", require "counter"
local list, buffer, queue, done, packets =
  env.list, env.buffer, env.queue, env.done, env.packets
local function callback()
  {body}
  packets:add()
  return nf.action.ACCEPT
end
for _, family in ipairs{{"IPV4", "IPV6"}} do
  nf.register{{pf = nf.family[family], hooknum = nf.inet_hooks.FORWARD, priority = 0,
              hook = callback}}
end
"""

SHARED = """
local env, rcu = lunatik._ENV, require "rcu"
env.list, env.buffer = rcu.table(64), require("data").new(64)
env.queue, env.done = require("fifo").new(4096), require("completion").new()
env.packets = require("counter").new()
"""

FORGET = "for key in pairs(lunatik._ENV) do lunatik._ENV[key] = nil end"

# What the slab's own bookkeeping moves by, see test_churn.py. A life has more than 100
# handles: if their nodes, of 32 bytes, were left behind, that would be 192,000 bytes.
SLACK_BYTES = 64 * 1024
LIVES = sanitizers.fewer(60)


def _objects_bytes() -> int:
    """Bytes that all shared objects hold."""
    return int(Path("/sys/module/lunatik/parameters/object_bytes").read_text())


def _kmalloc_bytes() -> int:
    """Bytes in use in the caches of kmalloc, see slabinfo(5)."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    rows = re.findall(
        r"^kmalloc-(?!rcl)\S+ +(\d+) +\d+ +(\d+)", Path("/proc/slabinfo").read_text(), re.M
    )
    return sum(int(objects) * int(size) for objects, size in rows)


@contextmanager
def _flood(topology: Topology) -> Iterator[subprocess.Popen[bytes]]:
    """Packets through the router for as long as the block runs."""
    ping = ["ping", "-f", "-q", topology["server"].address()]
    flood = topology["client"].popen(ping, stdout=subprocess.DEVNULL)
    try:
        yield flood
        assert flood.poll() is None, "the traffic ended early"
    finally:
        flood.terminate()
        flood.wait()


@pytest.fixture
def shared(lunatik: Lunatik) -> Iterator[Lunatik]:
    """The module, with the objects of SHARED in the environment until the test's end."""
    lunatik.runtime("shared", source=SHARED).stop()
    yield lunatik
    lunatik.runtime("forget", source=FORGET).stop()


def _filter(lunatik: Lunatik, topology: Topology, body: str) -> Runtime:
    return lunatik.runtime(
        "filter",
        source=HOOK.format(body=body),
        sleep=False,
        netns=topology["router"].netns,
    )


def _in_threads(runtimes: list[Runtime], rounds: int) -> None:
    """Resume each runtime in a thread and a connection of its own, so many times."""
    errors: list[Exception] = []

    def drive(info: RuntimeInfo) -> None:
        connection = Lunatik.connect()
        try:
            own = Runtime(connection, info)
            for _ in range(rounds):
                own.resume()
        except Exception as error:  # noqa: BLE001 - raised by the main thread
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=drive, args=(runtime.info(),)) for runtime in runtimes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# An entry's value says which key it belongs to, and its length is that of its end.
READ = """
local n = 0
for i = 1, 20 do
  local value = list[i]
  if type(value) == "string" then
    local key, len = value:match("^(%d+):x*:(%d+)$")
    assert(tonumber(key) == i and tonumber(len) == #value, "half a value")
  elseif type(value) == "userdata" then
    assert(value.key == i, "a table of another key")
  elseif value then
    assert(value // 1000 == i, "a number of another key")
  end
end
rcu.map(list, function(key, value)
  assert(key > 0 and (type(value) ~= "number" or value // 1000 == key), "half an entry")
  n = n + 1
end)
assert(n <= 40, "met twice")
"""

WRITE = """
local rcu, list = require "rcu", lunatik._ENV.list
while true do
  coroutine.yield()
  for round = 1, 40 do
    local i = math.random(1, 40)
    local kind = math.random(1, 5)
    if kind == 1 then
      local middle = ("x"):rep(math.random(0, 400))
      local head = i .. ":" .. middle .. ":"
      local len = #head + 3
      list[i] = head .. ("%03d"):format(len)
    elseif kind == 2 then
      local inner = rcu.table(64)
      inner.key = i
      list[i] = inner
    elseif kind == 3 then
      list[i] = i * 1000 + math.random(0, 999)
    else
      list[i] = nil
    end
  end
end
"""


def test_readers_never_see_half_a_value_while_writers_replace_and_delete(shared):
    with Topology.router() as topology:
        reader = _filter(shared, topology, READ)
        walker = shared.runtime(
            "walker",
            source="local rcu, list = require 'rcu', lunatik._ENV.list "
            f"while true do coroutine.yield() for _ = 1, 5 do {READ} end end",
        )
        writers = [shared.runtime("writer", source=WRITE) for _ in range(2)]
        with reader, walker, writers[0], writers[1]:
            with _flood(topology):
                _in_threads([*writers, walker], rounds=sanitizers.fewer(150, by=2))
            info = reader.info()
            assert info.calls > sanitizers.fewer(100)
            assert (info.errors, info.last_error) == (0, None)


def test_a_wrong_value_would_be_noticed(shared):
    with Topology.router() as topology, _filter(shared, topology, READ) as reader:
        shared.runtime("liar", source="lunatik._ENV.list[3] = 4000").stop()
        with _flood(topology):
            while reader.info().calls < 10:
                pass
        assert "a number of another key" in reader.info().last_error


def test_callbacks_write_and_nothing_is_lost_or_left(shared):
    body = """
    list.count = (list.count or 0) + 1
    list.text = ("t"):rep(list.count % 300)
    local inner = rcu.table()
    inner.text, list.inner = "x", inner
    for i = 1, 5 do list[list.count % 50 * 5 + i] = i % 2 == 0 and data.new(8) or nil end
    buffer:setuint32be(8, list.count & 0xffffffff)
    assert(buffer:getuint32be(8) == list.count)
    pcall(queue.send, queue, "message")
    done:complete()
    """
    drain = """
    local queue, done, env = lunatik._ENV.queue, lunatik._ENV.done, lunatik._ENV
    local rcu, data = require "rcu", require "data"
    while true do
      coroutine.yield()
      while done:wait(0) do assert((queue:receive() or "message") == "message") end
      assert(env.buffer:checksum())
      rcu.map(env.list, function(key, value)
        if type(value) == "userdata" and key ~= "inner" then assert(#value == 8) end
      end)
    end
    """
    with (
        Topology.router() as topology,
        _filter(shared, topology, body) as callbacks,
        shared.runtime("drain", source=drain) as drainer,
    ):
        with _flood(topology):
            _in_threads([drainer], rounds=sanitizers.fewer(200, by=2))
        info = callbacks.info()
        assert info.calls > sanitizers.fewer(100)
        assert (info.errors, info.last_error) == (0, None)
        count = shared.runtime(
            "count",
            source="coroutine.yield() return lunatik._ENV.packets:get()",
        )
        with count:
            assert count.resume() == callbacks.info().calls


def test_counting_on_every_cpu_loses_nothing(shared):
    source = """
    local packets, list = lunatik._ENV.packets, lunatik._ENV.list
    while true do coroutine.yield() for _ = 1, 1000 do packets:add() end end
    """
    adders = [shared.runtime("adder", source=source, sleep=bool(i % 2)) for i in range(4)]
    try:
        _in_threads(adders, rounds=25)
        reader = shared.runtime(
            "reader", source="coroutine.yield() return lunatik._ENV.packets:get()"
        )
        with reader:
            assert reader.resume() == 4 * 25 * 1000
    finally:
        for adder in adders:
            adder.stop()


def test_many_lives_of_objects_leave_the_memory_as_it_was(lunatik):
    source = """
    local rcu, data, fifo = require "rcu", require "data", require "fifo"
    local completion, counter = require "completion", require "counter"
    local env = lunatik._ENV
    env.outer = rcu.table()
    for i = 1, 20 do
      local inner = rcu.table(64)
      inner.data, inner.fifo = data.new(100 * i), fifo.new(100 * i)
      inner.completion, inner.counter = completion.new(), counter.new()
      inner.text = ("t"):rep(500)
      env.outer[i] = inner
    end
    for i = 1, 20, 2 do env.outer[i] = nil end
    local kept = env.outer[2].data
    env.outer = nil
    assert(#kept == 200)
    """

    def live(sleep: bool) -> None:
        lunatik.runtime("lives", source=source, sleep=sleep).stop()

    def settled() -> int:
        # Objects go when no reader can see them any more, a moment after the last put.
        subprocess.run(["sleep", "0.3"], check=True)
        return _kmalloc_bytes()

    for i in range(sanitizers.fewer(20)):
        live(bool(i % 2))
    before = settled()
    empty = _objects_bytes()
    for i in range(LIVES):
        live(bool(i % 2))
    # KASAN keeps freed objects back, which count as in use: there kmemleak judges.
    assert settled() - before < SLACK_BYTES or sanitizers.present()
    assert _objects_bytes() == empty


def test_a_held_object_is_seen_by_that_measure(lunatik):
    empty = _objects_bytes()
    holder = lunatik.runtime("holder", source="kept = require('data').new(50000)")
    assert _objects_bytes() - empty >= 50000
    holder.stop()
    assert _objects_bytes() == empty


class TestContext:
    """By trace: what callbacks do with objects neither sleeps nor may sleep."""

    ALL = """
    list.n = (list.n or 0) + 1
    list.s, list.gone = ("s"):rep(200), nil
    assert(env.list == list and #list.s == 200)
    local t = rcu.table()
    t.d, t.on = data.new(16), true
    list.inner = t
    rcu.map(list, function() end)
    for _ in pairs(t) do break end
    t.d:setuint16be(0, 5)
    t.d:resize(32)
    buffer:setstring(0, t.d:getstring(0))
    local q, c, k = fifo.new(64), completion.new(), counter.new()
    q:push("ab") q:pop(1) q:pop(1) q:send("m") q:receive() q:close()
    c:complete()
    k:add(2)
    assert(k:get() == 2 and buffer:checksum() >= 0)
    """

    def test_callbacks_never_sleep_whatever_they_do_with_objects(self, shared):
        from bridge.tracer import Outcome, Tracer, prove

        with Topology.router() as topology, Tracer() as tracer:
            with _filter(shared, topology, self.ALL) as callbacks:
                ping = ["ping", "-c", "20", "-i", "0.01", topology["server"].address()]
                topology["client"].run(ping)
                info = callbacks.info()
            trace = tracer.finish()
        assert (info.errors, info.last_error) == (0, None)
        proof = prove(trace, None)
        assert proof.atomic.outcome is Outcome.HOLDS, proof.atomic.reasons
        assert trace.callbacks == info.calls >= 40
        flags = trace.allocations_by_gfp(in_callback=True)
        assert flags
        # Sanitizers allocate on their own account, and do not wait either.
        others = [name for name in flags if not name.startswith("GFP_ATOMIC")]
        assert all(sanitizers.present() and "__GFP_NORETRY" in name for name in others), others
