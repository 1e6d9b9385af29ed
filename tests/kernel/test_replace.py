"""New source takes over a running policy: all of it at once, or not at all."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack

import pytest

from bridge.errors import LuaError, ModuleError
from bridge.lunatik import State
from bridge.testing import sanitizers
from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel

PORT = 9
FORWARD = """
local nf = require "netfilter"
local count = 0
nf.register{{pf = nf.family.INET, hooknum = nf.inet_hooks.{hook}, priority = {priority},
            hook = function() count = count + 1 return nf.action.{verdict} end}}
function handover() return count end
function takeover(n) count = count + n end
{extra}
coroutine.yield()
return count
"""
SENDER = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], {PORT}))
for _ in range(int(sys.argv[2])):
    s.send(b"x")
"""


def _source(*, verdict="DROP", hook="FORWARD", priority=0, extra=""):
    return FORWARD.format(verdict=verdict, hook=hook, priority=priority, extra=extra)


@pytest.fixture
def dropping(script, router):
    return script(_source(), sleep=False, netns=router["router"].netns)


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    with ExitStack() as stack:
        taker = router["server"].socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
        stack.enter_context(taker).bind(("", PORT))
        taker.setblocking(False)
        yield taker


def _drain(taker) -> int:
    """Return how many packets have come to the server, and forget them."""
    taken = 0
    while True:
        try:
            taker.recv(64)
        except BlockingIOError:
            return taken
        taken += 1


def _udp():
    from scapy.layers.inet import IP, UDP

    return IP() / UDP(sport=40000, dport=PORT) / b"payload"


def _verdict(traffic):
    return traffic.send(_udp())[0].verdict


def test_the_new_script_decides_under_the_old_number(dropping, traffic):
    assert _verdict(traffic) == Verdict.DROPPED
    dropping.replace("lenient", source=_source(verdict="ACCEPT"))
    assert _verdict(traffic) == Verdict.ACCEPTED
    info = dropping.info()
    assert (info.id, info.name, info.generation) == (dropping.id, "lenient", 2)
    assert (info.hooks, info.calls, info.state) == (1, 2, State.YIELDED)
    assert dropping.resume() == 2  # handed over, and counted on


def test_a_script_below_the_root_can_take_over(dropping, traffic):
    dropping.replace("accept")
    assert _verdict(traffic) == Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("this is no Lua", "syntax error"),
        ("error('broken')", "broken"),
        (_source(verdict="ACCEPT", extra="error('late')"), "late"),
        (
            _source(verdict="ACCEPT", extra="function takeover() error('refused') end"),
            "refused",
        ),
        (_source(verdict="ACCEPT", extra="takeover = 5"), "'takeover' is a number"),
        (_source(verdict="ACCEPT", extra="while true do end"), "budget exceeded"),
    ],
)
def test_a_script_that_fails_leaves_the_old_one_in_charge(dropping, traffic, source, message):
    before = dropping.info()
    with pytest.raises(LuaError, match=message):
        dropping.replace("new", source=source)
    assert _verdict(traffic) == Verdict.DROPPED
    info = dropping.info()
    assert (info.name, info.generation, info.hooks) == (before.name, 1, 1)
    assert info.memory_bytes < 2 * before.memory_bytes
    assert dropping.resume() == 1


def test_a_script_that_is_missing_leaves_the_old_one_in_charge(dropping, traffic):
    with pytest.raises(LuaError, match="no_such_script"):
        dropping.replace("no_such_script")
    assert _verdict(traffic) == Verdict.DROPPED


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("function handover() error('mine') end", "mine"),
        ("function handover() return {} end", "value #1 is a table"),
        ("function handover() while true do end end", "budget exceeded"),
    ],
)
def test_a_handover_that_fails_leaves_the_old_script_in_charge(
    script, router, traffic, extra, message
):
    runtime = script(_source(extra=extra), sleep=False, netns=router["router"].netns)
    with pytest.raises(LuaError, match=message):
        runtime.replace("new", source=_source(verdict="ACCEPT"))
    assert _verdict(traffic) == Verdict.DROPPED


def test_scripts_without_the_two_functions_replace_each_other(policy, traffic):
    runtime = policy("return DROP")
    runtime.replace("accept")
    assert _verdict(traffic) == Verdict.ACCEPTED


def test_a_hook_at_another_place_takes_over(dropping, traffic):
    dropping.replace("new", source=_source(verdict="DROP", priority=-5))
    assert dropping.info().hooks == 1
    assert _verdict(traffic) == Verdict.DROPPED
    dropping.replace("new", source=_source(verdict="DROP", hook="PRE_ROUTING", priority=-5))
    assert dropping.info().hooks == 1
    assert _verdict(traffic) == Verdict.DROPPED
    assert dropping.resume() == 2


def test_a_script_without_hooks_ends_those_of_the_old_one(dropping, traffic):
    dropping.replace("new", source="coroutine.yield()")
    assert dropping.info().hooks == 0
    assert _verdict(traffic) == Verdict.ACCEPTED


def test_a_sleepable_script_is_replaced_too(script):
    runtime = script("function handover() return 'state', 7 end coroutine.yield()")
    runtime.replace(
        "new", source="function takeover(...) s = {...} end coroutine.yield() return s[1], s[2]"
    )
    assert runtime.resume() == (b"state", 7)
    assert runtime.info().state is State.FINISHED
    runtime.replace("echo")
    assert runtime.info().state is State.YIELDED


def test_a_stopped_runtime_cannot_be_replaced(script):
    runtime = script("coroutine.yield()")
    runtime.stop()
    with pytest.raises(ModuleError, match="no runtime has the number"):
        runtime.replace("echo")


def test_every_packet_of_a_flood_meets_exactly_one_script(dropping, router, sink):
    client, server = router["client"], router["server"]
    packets = sanitizers.fewer(20_000, by=10)
    _drain(sink)
    flood = client.popen(
        [sys.executable, "-c", SENDER, server.address(), str(packets)],
    )
    places = [0, 0, -7, 0, 7]
    replaced = 0
    while flood.poll() is None:
        dropping.replace("next", source=_source(priority=places[replaced % len(places)]))
        replaced += 1
    assert flood.returncode == 0
    assert replaced > len(places)
    dropping.replace("last", source=_source())
    assert _drain(sink) == 0, "packets have passed unfiltered"
    assert dropping.info().calls >= packets
    assert dropping.resume() >= packets


def test_a_flood_is_counted_once_where_the_place_stays(dropping, router, sink):
    client, server = router["client"], router["server"]
    packets, replaced = sanitizers.fewer(10_000, by=10), 0
    _drain(sink)
    flood = client.popen([sys.executable, "-c", SENDER, server.address(), str(packets)])
    while flood.poll() is None:
        dropping.replace("next", source=_source())
        replaced += 1
    assert replaced > 3
    assert _drain(sink) == 0
    assert dropping.resume() == packets
