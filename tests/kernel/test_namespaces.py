"""Hooks in many network namespaces, each to itself."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from bridge.lunatik import Lunatik
from bridge.testing import sanitizers
from netns.namespace import DIRECTORY, entered

pytestmark = pytest.mark.kernel

MANY = sanitizers.fewer(60)
COUNT = """
local nf = require "netfilter"
nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
            hook = function() return nf.action.ACCEPT end}
"""


@pytest.fixture(scope="module")
def many():
    """Names of namespaces whose loopback is up."""
    names = [f"many-{number}" for number in range(MANY)]
    batch = "".join(f"netns add {name}\n" for name in names)
    try:
        subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
        for name in names:
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _send(name: str, packets: int) -> None:
    with entered(DIRECTORY / name):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(packets):
            sender.sendto(b"x", ("127.0.0.1", 9))


def test_hooks_in_many_namespaces_each_count_their_own_packets(many):
    with Lunatik.load() as lunatik, ExitStack() as stack:
        runtimes = [
            stack.enter_context(lunatik.runtime("n", source=COUNT, sleep=False, netns=name))
            for name in many
        ]
        for number, name in enumerate(many):
            _send(name, 1 + number % 3)
        # the loopback answers each with an ICMP error, which leaves by LOCAL_OUT too
        calls = [runtime.info().calls for runtime in runtimes]
        assert calls == [2 * (1 + number % 3) for number in range(MANY)]
        assert len({runtime.info().netns for runtime in runtimes}) == MANY


def test_a_runtime_created_inside_a_namespace_has_its_hooks_there(many):
    create = f"""
from bridge.lunatik import Lunatik
from bridge.testing import sanitizers
Lunatik.connect().runtime("inside", source={COUNT!r}, sleep=False)
"""
    with Lunatik.load() as lunatik:
        with entered(DIRECTORY / many[0]):
            creator = subprocess.Popen([sys.executable, "-c", create])
        assert creator.wait() == 0
        [info] = lunatik.runtimes()
        assert info.netns == (DIRECTORY / many[0]).stat().st_ino
        _send(many[1], 3)
        _send(many[0], 2)
        assert lunatik.runtimes()[0].calls == 4
        lunatik.stop(info.id)


def test_half_of_the_namespaces_go_away_and_the_others_go_on(many):
    with Lunatik.load() as lunatik, ExitStack() as stack:
        for name in many:
            stack.enter_context(lunatik.runtime("n", source=COUNT, sleep=False, netns=name))
        for name in many[::2]:
            subprocess.run(["ip", "netns", "del", name], check=True)
        _wait_for(lunatik, MANY // 2)
        for name in many[1::2]:
            _send(name, 1)
        assert [info.calls for info in lunatik.runtimes()] == [2] * (MANY // 2)


def _wait_for(lunatik: Lunatik, runtimes: int, timeout_s: float = 60) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while lunatik.info().runtimes != runtimes:
        assert time.monotonic() < deadline, f"{lunatik.info().runtimes} runtimes are left"
        time.sleep(0.05)
