"""What listeners hear of runtimes: all of it, in its order, and not too much."""

from __future__ import annotations

import errno
import json
import re
import select
import socket
import subprocess
import sys
import time

import pytest

from bridge import cli
from bridge.errors import LuaError, ModuleError
from bridge.runtime_events import (
    Armed,
    BudgetExceeded,
    Created,
    Failed,
    Replaced,
    Resumed,
    Stopped,
    Yielded,
)

pytestmark = pytest.mark.kernel

WAIT_S = 10.0
PORT = 9
HOOK = """
local nf = require "netfilter"
nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
            hook = function() BODY end}
"""
FAILING = HOOK.replace("BODY", "error('no verdict today')")
SENDER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
for _ in range(int(sys.argv[3])):
    s.send(b"x")
"""


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    with router["server"].socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as taker:
        taker.bind(("", PORT))
        yield


@pytest.fixture
def events(lunatik):
    with lunatik.events() as heard:
        yield heard


@pytest.fixture
def send(router):
    def sent(packets: int) -> None:
        address = router["server"].address()
        router["client"].run([sys.executable, "-c", SENDER, address, str(PORT), str(packets)])

    return sent


@pytest.fixture
def in_client(script, router):
    def create(source: str, **options: object):
        return script(source, sleep=False, netns=router["client"].netns, **options)

    return create


def _told(events, runtime) -> list:
    return events.until(Stopped, runtime_id=runtime.id, timeout_s=WAIT_S)


def test_a_whole_life_is_told_in_its_order(events, in_client, send):
    runtime = in_client(HOOK.replace("BODY", "return 1") + "coroutine.yield() error('late')")
    with pytest.raises(LuaError):
        runtime.resume()
    runtime.replace("second", source=FAILING + "coroutine.yield() coroutine.yield()")
    send(1)
    (number,) = [hook.number for hook in runtime.hooks()]
    runtime.resume()
    runtime.resume()
    info = runtime.info()
    runtime.stop()
    told = _told(events, runtime)
    assert {event.runtime_id for event in told} == {runtime.id}
    assert [event.runtime_name for event in told] == ["script"] * 5 + ["second"] * 7
    when = [event.time_ns for event in told]
    assert when == sorted(when)
    assert when[-1] - when[0] < WAIT_S * 1e9
    shown = [(type(event), *_details(event)) for event in told]
    assert shown == [
        (Created, False, False, info.netns),
        (Armed, 1),
        (Resumed,),
        (Failed, None, told[3].message, 0),
        (Yielded, "error"),
        (Replaced, 2, 1),
        (Failed, number, told[6].message, 0),
        (Resumed,),
        (Yielded, "yielded"),
        (Resumed,),
        (Yielded, "returned"),
        (Stopped, "requested", 0),
    ]
    assert "late" in told[3].message
    assert "no verdict today" in told[6].message


def _details(event) -> tuple:
    common = {"runtime_id", "runtime_name", "time_ns"}
    names = [name for name in event.__dataclass_fields__ if name not in common]
    return tuple(getattr(event, name) for name in names)


def test_a_body_that_fails_at_creation_is_told_of(lunatik, events):
    with pytest.raises(LuaError):
        lunatik.runtime("broken", source="error('at once')")
    told = events.until(Stopped, timeout_s=WAIT_S)
    assert [type(event) for event in told] == [Created, Failed, Stopped]
    assert told[-1].reason == "create failed"


def test_running_too_long_is_told_as_such(events, in_client, send):
    runtime = in_client(
        HOOK.replace("BODY", "while true do end") + "coroutine.yield() while true do end"
    )
    send(1)
    with pytest.raises(LuaError):
        runtime.resume()
    (number,) = [hook.number for hook in runtime.hooks()]
    runtime.stop()
    told = [event for event in _told(events, runtime) if isinstance(event, Failed)]
    assert [type(event) for event in told] == [BudgetExceeded] * 2
    assert [event.hook for event in told] == [number, None]
    assert all("budget exceeded" in event.message for event in told)


def test_a_flood_of_failures_is_bounded_and_counted(events, in_client, send):
    packets = 5000
    runtime = in_client(FAILING)
    begin = time.monotonic()
    send(packets)
    seconds = time.monotonic() - begin
    runtime.stop()
    told = _told(events, runtime)
    failures = [event for event in told if isinstance(event, Failed)]
    assert 10 <= len(failures) <= 10 * (seconds + 2)
    suppressed = sum(event.suppressed for event in failures) + told[-1].suppressed
    assert len(failures) + suppressed == packets


def test_a_message_that_is_long_or_no_text_is_told(events, script):
    runtime = script("coroutine.yield() error('\\xff' .. ('x'):rep(5000), 0)")
    with pytest.raises(LuaError):
        runtime.resume()
    runtime.stop()
    (failure,) = [event for event in _told(events, runtime) if isinstance(event, Failed)]
    assert failure.message.startswith("\N{REPLACEMENT CHARACTER}xxx")
    assert 100 < len(failure.message) < 200


def test_without_a_listener_nothing_is_suppressed_or_told_later(lunatik, in_client, send):
    runtime = in_client(FAILING)
    send(100)
    with lunatik.events() as events:
        assert events.next(0.5) is None
        send(1)
        runtime.stop()
        told = _told(events, runtime)
    assert [type(event) for event in told] == [Failed, Stopped]
    assert [event.suppressed for event in told] == [0, 0]


def test_every_state_of_a_runtime_tells_of_its_resumption(events, in_client):
    runtime = in_client("coroutine.yield() return", percpu=True)
    runtime.resume()
    runtime.stop()
    kinds = [type(event) for event in _told(events, runtime)]
    assert kinds == [Created, Armed, Resumed, Yielded, Resumed, Yielded, Stopped]


def test_a_listener_in_another_namespace_hears_the_same(lunatik, router, script):
    listen = """
import sys
from bridge.lunatik import Lunatik
with Lunatik.connect() as lunatik, lunatik.events() as events:
    print("ready", flush=True)
    for event in events.until_quiet(5):
        print(type(event).__name__, flush=True)
        if type(event).__name__ == "Stopped":
            break
"""
    with router["server"].popen(
        [sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout.readline() == "ready\n"
        script("return").stop()
        assert listener.stdout.read().split() == ["Created", "Armed", "Stopped"]


def test_a_reader_that_is_too_slow_learns_of_it(lunatik, script):
    with lunatik.events(buffer_bytes=4096) as events:
        for _ in range(50):
            script("return").stop()
        with pytest.raises(ModuleError, match="events were lost") as caught:
            list(events.until_quiet(1.0))
        assert caught.value.errno == errno.ENOBUFS
        list(events.until_quiet(0.5))
        runtime = script("return")
        runtime.stop()
        assert [type(event) for event in _told(events, runtime)] == [Created, Armed, Stopped]


def test_a_listener_needs_privilege(lunatik):
    attempt = """
import os
from bridge.errors import ModuleError
from bridge.lunatik import Lunatik
os.setgid(65534)
os.setuid(65534)
try:
    Lunatik.connect().events()
except ModuleError as error:
    print(error.errno, error)
"""
    argv = [sys.executable, "-c", attempt]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{errno.EPERM} cannot listen to events")


def test_nothing_is_told_where_privilege_is_of_ones_own_making(lunatik, script):
    # In a user namespace with a network namespace anybody may join; it is of no use.
    listen = """
import ctypes, select, socket
from bridge.netlink import Connection
assert ctypes.CDLL(None).unshare(0x50000000) == 0  # CLONE_NEWUSER, CLONE_NEWNET
group = Connection().events_group
listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
listener.bind((0, 0))
listener.setsockopt(270, 1, group)
print("listening", flush=True)
print(len(select.select([listener], [], [], 3)[0]), flush=True)
"""
    argv = [sys.executable, "-c", listen]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout.readline() == "listening\n"
        with lunatik.events() as events:
            script("return").stop()
            events.until(Stopped, timeout_s=WAIT_S)
        assert listener.stdout.read() == "0\n"


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["lines", "json"])
def test_the_command_line_tells_of_them(script, options):
    argv = [sys.executable, "-m", "bridge.cli", "events", "--native", "--timeout", "60"]
    with subprocess.Popen([*argv, *options], stdout=subprocess.PIPE, text=True) as told:
        while not select.select([told.stdout], [], [], 0.2)[0]:  # it is not listening yet
            assert told.poll() is None
            script("return", name="brief").stop()
        line = told.stdout.readline()
        told.terminate()
    if options:
        assert json.loads(line)["runtime_name"] == "brief"
    assert re.search(r"\b(Created|Armed|Stopped)\b", line)
    assert "brief" in line


def test_the_command_line_ends_when_it_is_asked_to(lunatik, capfd):
    begin = time.monotonic()
    assert cli.run(["events", "--native", "--timeout", "0.5"]) == 0
    assert time.monotonic() - begin >= 0.5
    assert capfd.readouterr().out == ""
