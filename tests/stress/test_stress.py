"""Several processes create, resume and stop while packets flow and namespaces come and go."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bridge.errors import LuaError, ModuleError
from bridge.fuzz.journal import Journal
from bridge.fuzz.sending import stop_all
from bridge.lunatik import Lunatik, Runtime
from bridge.testing import sanitizers
from netns import Topology, namespace

pytestmark = pytest.mark.kernel

SHORT_S, LONG_S = 10.0 if sanitizers.present() else 6.0, 60.0
GRACE_S = 60.0
# Far below one Lua state for each runtime created, far above what caches move by.
SLACK_BYTES = 2 << 20
# What may become of a request while somebody else stops, runs or replaces its target.
EXPECTED = (errno.ESRCH, errno.EBUSY)
BUSY = r"cannot resume runtime|is busy|as asked|resume takes|the network namespace is gone"

COUNTER = """
local nf = require "netfilter"
local seen = 0
nf.register{
  pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
  hook = function(skb)
    seen = seen + #skb:string(0) // #skb
    return nf.action.ACCEPT
  end,
}
while true do coroutine.yield(seen) end
"""
FAMILY = """
local children = {}
while true do
  local what = coroutine.yield(#children)
  local ok, child = pcall(lunatik.runtime, "echo", #children % 2 == 0)
  if ok then
    children[#children + 1] = child
    pcall(child.resume, child, what)
  end
  if #children > 5 then children[math.random(#children)]:stop() children = {} end
end
"""

Tally = Counter[str]


class Shift:
    """One worker's time, choices and count."""

    def __init__(self, seed: int, end: float) -> None:
        self.rng = random.Random(seed)
        self.tally: Tally = Counter()
        self._end = end

    def goes_on(self) -> bool:
        return time.monotonic() < self._end

    @contextmanager
    def trying(self, what: str):
        """Count what comes of a request whose target others have their hands on."""
        try:
            yield
            self.tally[what] += 1
        except ModuleError as error:
            if error.errno not in EXPECTED:
                raise
            self.tally[f"{what}: {errno.errorcode[error.errno]}"] += 1
        except LuaError as error:
            if not re.search(BUSY, error.message):
                raise
            self.tally[f"{what}: refused"] += 1


def create(shift: Shift, netns: str) -> None:
    """Create runtimes of every kind, drive them, stop most and leave some to others."""
    with Lunatik.connect() as lunatik:
        while shift.goes_on():
            runtime = _any_runtime(shift, lunatik, netns)
            for _ in range(shift.rng.randrange(4)):
                with shift.trying("resumed by its creator"):
                    runtime.resume(*shift.rng.choice((("block", "bad.example"), (7,), ("x",))))
            if shift.rng.random() < 0.3:
                with shift.trying("replaced by its creator"):
                    runtime.replace("echo")
            if shift.rng.random() < 0.8:
                runtime.stop()
                shift.tally["stopped by its creator"] += 1


def _any_runtime(shift: Shift, lunatik: Lunatik, netns: str) -> Runtime:
    shift.tally["created"] += 1
    match shift.rng.randrange(6):
        case 0:
            return lunatik.runtime("echo")
        case 1:
            return lunatik.runtime("echo", sleep=False)
        case 2:
            return lunatik.runtime("family", source=FAMILY)
        case 3:
            return lunatik.runtime("dns_block", sleep=False, netns=netns)
        case 4:
            return lunatik.runtime("drop_port", sleep=False, netns=netns)
    return lunatik.runtime("counter", source=COUNTER, sleep=False)


def meddle(shift: Shift, _netns: str) -> None:
    """Resume, ask about and stop what others created."""
    with Lunatik.connect() as lunatik:
        while shift.goes_on():
            alive = lunatik.runtimes()
            for info in shift.rng.sample(alive, min(3, len(alive))):
                runtime = Runtime(lunatik, info)
                with shift.trying("resumed by another"):
                    runtime.resume(shift.rng.choice(("allow", "x", 53)), "bad.example")
                if not info.sleep and shift.rng.random() < 0.3:
                    with shift.trying("replaced by another"):
                        runtime.replace("counter", source=COUNTER)
                with shift.trying("asked about"):
                    assert runtime.info().id == info.id
                if shift.rng.random() < 0.4:
                    with shift.trying("stopped by another"):
                        lunatik.stop(info.id)


def poll(shift: Shift, _netns: str) -> None:
    """Read everything there is to read; a runtime's counters never go back."""
    calls: dict[int, int] = {}
    with Lunatik.connect() as lunatik:
        while shift.goes_on():
            for info in lunatik.runtimes():
                assert info.calls >= calls.get(info.id, 0)
                calls[info.id] = info.calls
            assert lunatik.info().runtimes >= 0
            shift.tally["polls"] += 1
    shift.tally["callbacks seen by the poller"] = sum(calls.values())


def come_and_go(shift: Shift, _netns: str) -> None:
    """Make a namespace, send packets through a policy in it, take the namespace away."""
    with Lunatik.connect() as lunatik:
        while shift.goes_on():
            name = f"stress-{os.getpid()}"
            path = namespace.create(name)
            try:
                left = [
                    lunatik.runtime("counter", source=COUNTER, sleep=False, netns=str(path))
                    for _ in range(shift.rng.randrange(1, 4))
                ]
                with namespace.entered(path):
                    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
                    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                with sender:
                    for _ in range(20):
                        with suppress(ConnectionRefusedError):
                            sender.sendto(b"x" * 100, ("127.0.0.1", 9))
                    with shift.trying("resumed in a namespace"):
                        left[0].resume()
                    namespace.remove(name)  # the socket keeps it
            finally:
                namespace.remove(name)
            shift.tally["namespaces taken away under a runtime"] += 1


ROLES: tuple[Callable[[Shift, str], None], ...] = (
    create, create, create, meddle, meddle, poll, come_and_go, come_and_go,
)  # fmt: skip


def work(number: int, seed: int, end: float, netns: str) -> Tally:
    """Do one role's work in this process."""
    shift = Shift(seed * 100 + number, end)
    ROLES[number](shift, netns)
    return shift.tally


def run(seed: int, seconds: float, netns: str) -> Tally:
    """Do the work of all roles at once; returns what was done. Raises what a role raises."""
    context = multiprocessing.get_context("fork")
    end = time.monotonic() + seconds
    with ProcessPoolExecutor(len(ROLES), mp_context=context) as pool:
        shifts = [pool.submit(work, number, seed, end, netns) for number in range(len(ROLES))]
        _, late = wait(shifts, timeout=seconds + GRACE_S)
        if late:
            where = "\n".join(map(_whereabouts, pool._processes))
            for process in pool._processes:
                os.kill(process, signal.SIGKILL)
            pytest.fail(f"{len(late)} processes do not end, seed {seed}:\n{where}")
    return sum((shift.result() for shift in shifts), Counter())


def _whereabouts(process: int) -> str:
    stack = Path(f"/proc/{process}/stack")
    return f"process {process}:\n{stack.read_text()}" if stack.exists() else f"{process}: gone"


def _kmalloc_bytes() -> int:
    Path("/proc/sys/vm/drop_caches").write_text("3")
    rows = re.findall(
        r"^kmalloc-(?!rcl)\S+ +(\d+) +\d+ +(\d+)", Path("/proc/slabinfo").read_text(), re.M
    )
    return sum(int(objects) * int(size) for objects, size in rows)


def _settle(lunatik: Lunatik) -> None:
    """Stop what is left, and wait for namespaces that the kernel still takes down."""
    deadline = time.monotonic() + GRACE_S
    while lunatik.info().runtimes or Path("/sys/module/lunatik/refcnt").read_text() != "0\n":
        assert time.monotonic() < deadline, "runtimes or references stay"
        stop_all(lunatik)
        time.sleep(0.1)


@pytest.mark.parametrize("seed", range(4))
def test_everything_at_once_leaves_nothing(lunatik, long_run, seed, tally):
    with Topology.router() as topology:
        netns, server = topology["router"].netns, topology["server"]
        flood = topology["client"].popen(
            ["ping", "-f", "-q", server.address()], stdout=subprocess.DEVNULL
        )
        journal = Journal()
        try:
            run(seed, 2, netns)  # caches and lists fill up once
            _settle(lunatik)
            before = _kmalloc_bytes()
            journal.begin(f"pytest tests/stress -k everything_at_once, seed {seed}")
            done = run(seed, LONG_S if long_run else SHORT_S, netns)
            _settle(lunatik)
            grown = _kmalloc_bytes() - before
            journal.end()
            assert flood.poll() is None, "the traffic ended early"
        finally:
            journal.close()
            flood.terminate()
            flood.wait()
    tally("\n".join(f"{number:6} {what}" for what, number in sorted(done.items())))
    for what in ("created", "stopped by its creator", "replaced by its creator", "polls",
                 "resumed by another", "stopped by another",
                 "namespaces taken away under a runtime"):  # fmt: skip
        assert done[what], what
    # KASAN keeps freed objects back, which count as in use: there kmemleak judges.
    assert grown < SLACK_BYTES or sanitizers.present()


def test_a_process_that_does_not_end_is_reported_with_its_kernel_stack(lunatik, monkeypatch):
    def hang(shift: Shift, _netns: str) -> None:
        while True:
            time.sleep(1)

    monkeypatch.setitem(globals(), "ROLES", (poll, hang))
    monkeypatch.setitem(globals(), "GRACE_S", 3.0)
    with pytest.raises(
        pytest.fail.Exception, match=r"(?s)1 processes do not end, seed 5.*nanosleep"
    ):
        run(5, 0.5, "")


def test_an_unexpected_error_of_a_role_is_reported(lunatik, monkeypatch):
    def fail(shift: Shift, _netns: str) -> None:
        with shift.trying("created"), Lunatik.connect() as connection:
            connection.runtime("broken", source="error('not expected')")

    monkeypatch.setitem(globals(), "ROLES", (poll, fail))
    with pytest.raises(LuaError, match="not expected"):
        run(5, 0.5, "")
