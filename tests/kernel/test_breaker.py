"""A runtime whose callbacks fail and fail is stopped, if that was asked for."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from bridge.errors import ModuleError
from bridge.runtime_events import Broken, Failed, Stopped
from bridge.testing import sanitizers

pytestmark = pytest.mark.kernel

WAIT_S = 10.0
PORT = 9
# The callback fails for packets of three bytes.
FUSSY = """
local nf = require "netfilter"
nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
            hook = function(skb)
  if skb:u16(24) == 8 + 3 then error("three bytes") end
  return nf.action.ACCEPT
end}
"""
SENDER = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for size in sys.argv[4]:
    s.sendto(bytes(int(size)), (sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    with router["server"].socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as taker:
        taker.bind(("", PORT))
        yield


@pytest.fixture
def send(router):
    """Send one packet of each size, a digit."""

    def sent(sizes: str, cpu: int = 0) -> None:
        address = router["server"].address()
        argv = [sys.executable, "-c", SENDER, str(cpu), address, str(PORT), sizes]
        router["client"].run(argv)

    return sent


@pytest.fixture
def fussy(script, router):
    def create(source: str = FUSSY, **options: object):
        return script(source, sleep=False, netns=router["client"].netns, **options)

    return create


@pytest.fixture
def events(lunatik):
    with lunatik.events() as heard:
        yield heard


def _alive(lunatik, runtime) -> bool:
    return runtime.id in {info.id for info in lunatik.runtimes()}


def test_it_stops_at_the_last_of_as_many_failures(lunatik, events, fussy, send):
    runtime = fussy(breaker=3)
    assert runtime.info().breaker == 3
    send("33")
    assert runtime.info().errors == 2
    send("3" * 50)
    told = events.until(Stopped, runtime_id=runtime.id, timeout_s=WAIT_S)
    (broken,) = [event for event in told if isinstance(event, Broken)]
    assert broken.failures == 3
    failed = [event for event in told if isinstance(event, Failed)]
    assert [event.hook for event in failed] == [broken.hook] * 3
    assert told[-1].reason == "broken"
    assert not _alive(lunatik, runtime)
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    assert f"runtime {runtime.id} (script): stopped, because 3 callbacks" in log


def test_no_callback_runs_after_the_last_failure(events, fussy, send):
    # another runtime sees what goes on after it: all packets pass
    patient = FUSSY.replace("priority = 0", "priority = 1").replace('error("three bytes")', "")
    counter = fussy(patient)
    runtime = fussy(breaker=1)
    send("3" * 100)
    told = events.until(Stopped, runtime_id=runtime.id, timeout_s=WAIT_S)
    assert len([event for event in told if isinstance(event, Failed)]) == 1
    assert counter.hooks()[0].packets == 100


def test_a_success_in_between_begins_anew(lunatik, events, fussy, send):
    runtime = fussy(breaker=3)
    send("331" * 30)
    assert runtime.info().errors == 60
    send("333")
    events.until(Stopped, runtime_id=runtime.id, timeout_s=WAIT_S)
    assert not _alive(lunatik, runtime)


def test_without_a_breaker_failures_go_on(fussy, send):
    runtime = fussy()
    send("3" * 500)
    info = runtime.info()
    assert (info.breaker, info.errors) == (0, 500)


def test_each_state_counts_for_itself(lunatik, events, fussy, send):
    runtime = fussy(percpu=True, breaker=4)
    for _ in range(2):
        send("3", cpu=0)
        send("3", cpu=1)
    send("3", cpu=0)
    assert runtime.info().errors == 5
    send("3", cpu=0)
    events.until(Stopped, runtime_id=runtime.id, timeout_s=WAIT_S)
    assert not _alive(lunatik, runtime)


def test_failures_of_several_hooks_count_together(lunatik, events, fussy, send):
    twice = f"do {FUSSY} end do {FUSSY} end"
    runtime = fussy(twice, breaker=4)
    send("3")
    assert runtime.info().errors == 2
    send("3")
    events.until(Stopped, runtime_id=runtime.id, timeout_s=WAIT_S)
    assert not _alive(lunatik, runtime)


def test_a_script_that_takes_over_begins_anew(lunatik, events, fussy, send):
    runtime = fussy(breaker=3)
    send("33")
    runtime.replace("next", source=FUSSY)
    send("33")
    assert runtime.info().breaker == 3
    assert runtime.info().errors == 4
    send("3")
    events.until(Stopped, runtime_id=runtime.id, timeout_s=WAIT_S)
    assert not _alive(lunatik, runtime)


def test_it_may_break_while_it_is_replaced(lunatik, fussy, send, router):
    for _ in range(sanitizers.fewer(10)):
        runtime = fussy(breaker=20)
        address = router["server"].address()
        flood = router["client"].popen(
            [sys.executable, "-c", SENDER, "1", address, str(PORT), "3" * 3000]
        )
        try:
            while flood.poll() is None:
                runtime.replace("next", source=FUSSY)
        except ModuleError:  # it has broken
            pass
        finally:
            flood.wait()
        assert flood.returncode == 0
        runtime.stop()
    assert lunatik.runtimes() == []


def test_a_sleepable_runtime_has_no_breaker(lunatik):
    with pytest.raises(ModuleError, match="breaker needs sleep=0"):
        lunatik.runtime("echo", breaker=1)
