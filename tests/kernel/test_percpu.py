"""Runtimes with a Lua state per CPU."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from bridge.errors import LuaError, ModuleError

pytestmark = pytest.mark.kernel

COUNT = """
local nf = require "netfilter"
local count = 0
nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
            hook = function() count = count + 1 return nf.action.ACCEPT end}
function handover() return count end
function takeover(n) count = n end
while true do
  local what = coroutine.yield(count)
  if what == "fail" and count > 0 then error("on purpose") end
end
"""
SENDER = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[3])):
    s.sendto(b"x", (sys.argv[2], 9))
"""


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    with router["server"].socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as taker:
        taker.bind(("", 9))
        yield


@pytest.fixture
def counter(script, router):
    return script(COUNT, sleep=False, percpu=True, netns=router["client"].netns)


def _send(router, cpu: int, packets: int) -> None:
    address = router["server"].address()
    router["client"].run([sys.executable, "-c", SENDER, str(cpu), address, str(packets)])


def test_each_cpu_counts_its_own_packets(counter, router):
    assert os.cpu_count() == 2, "the lab has two CPUs"
    _send(router, 0, 10)
    _send(router, 1, 5)
    assert counter.resume() == 10  # that of the first CPU
    info = counter.info()
    assert info.percpu
    assert info.calls == 15
    assert info.hooks == 1


def test_memory_is_that_of_all_states(script, counter):
    single = script("coroutine.yield()", sleep=False)
    assert not single.info().percpu
    assert counter.info().memory_bytes > 1.8 * single.info().memory_bytes


def test_an_error_on_one_cpu_reaches_the_caller_and_leaves_the_others(counter, router):
    _send(router, 1, 3)
    with pytest.raises(LuaError, match="on purpose"):
        counter.resume("fail")
    assert counter.info().errors == 0
    assert counter.info().hooks == 1
    with pytest.raises(LuaError, match="its script has failed"):
        counter.resume()


def test_every_state_hands_over_to_its_successor(counter, router):
    _send(router, 0, 4)
    _send(router, 1, 6)
    counter.replace("next", source=COUNT)
    _send(router, 0, 1)
    assert counter.resume() == 5
    assert counter.info().calls == 11


def test_a_takeover_that_fails_on_one_cpu_fails_on_all(counter, router):
    _send(router, 0, 4)
    _send(router, 1, 6)
    picky = COUNT.replace("count = n end", "if n == 6 then error('six') end count = 0 end")
    with pytest.raises(LuaError, match="six"):
        counter.replace("picky", source=picky)
    _send(router, 0, 1)
    assert counter.resume() == 5
    assert counter.info().generation == 1


def test_a_sleepable_runtime_has_one_state(script):
    with pytest.raises(ModuleError, match="percpu needs sleep=0"):
        script("return", sleep=True, percpu=True)


def test_a_body_that_fails_on_a_later_cpu_creates_nothing(lunatik, script):
    # Lua states share nothing: only the kernel's generator tells them apart
    flaky = "if math.random(2) == 1 then error('unlucky') end"
    outcomes = set()
    for _ in range(40):
        try:
            script(flaky, sleep=False, percpu=True).stop()
            outcomes.add("created")
        except LuaError:
            outcomes.add("failed")
    assert outcomes == {"created", "failed"}
    assert lunatik.info().runtimes == 0
