"""What NAME.lua decides about real packets, in a real kernel.

pytest test_NAME.py            in the lab, a throw-away virtual machine
pytest --native test_NAME.py   on the kernel of this machine, as root
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from bridge.errors import LuaError
from bridge.lunatik import Lunatik, Runtime
from bridge.traffic import Packet, Traffic, Verdict
from netns import Topology

pytestmark = pytest.mark.kernel

POLICY = Path(__file__).with_name("NAME.lua")


@pytest.fixture
def network() -> Iterator[Topology]:
    """A client, a router and a server, each in a network namespace of its own."""
    with Topology.router() as topology:
        yield topology


@pytest.fixture
def traffic(network: Topology) -> Iterator[Traffic]:
    """Packets from the client to the server, watched on every link."""
    with Traffic(network) as running:
        yield running


@pytest.fixture
def runtime(network: Topology) -> Iterator[Runtime]:
    """The policy, in force at the router; afterwards, none of its callbacks has failed."""
    netns = network["router"].netns
    with (
        Lunatik.load() as lunatik,
        lunatik.runtime(POLICY, sleep=False, netns=netns) as running,
    ):
        yield running
        info = running.info()
        assert info.errors == 0, info.last_error


def packets(port: int) -> list[Packet]:
    """UDP and TCP packets to a port, over IPv4 and IPv6; addresses are filled in."""
    return [ip / layer(dport=port) for ip in (IP(), IPv6()) for layer in (UDP, TCP)]


def verdicts(traffic: Traffic, port: int) -> set[Verdict]:
    """Send the packets; return what became of them."""
    return {outcome.verdict for outcome in traffic.send(packets(port))}


@pytest.mark.usefixtures("runtime")
def test_a_blocked_port_is_dropped_and_others_pass(traffic: Traffic) -> None:
    """One port is blocked from the start."""
    assert verdicts(traffic, 9) == {Verdict.DROPPED}
    assert verdicts(traffic, 10) == {Verdict.ACCEPTED}


@pytest.mark.usefixtures("runtime")
def test_what_has_no_port_passes(traffic: Traffic) -> None:
    """The target's kernel answers echo requests."""
    assert traffic.ping(count=2).received == 2
    assert traffic.ping(version=6, count=2).received == 2


def test_resume_changes_what_is_blocked(traffic: Traffic, runtime: Runtime) -> None:
    """Without a new runtime, and without a packet that meets no policy."""
    assert runtime.resume("block", 10) == 2
    assert runtime.resume("allow", 9) == 1
    assert verdicts(traffic, 9) == {Verdict.ACCEPTED}
    assert verdicts(traffic, 10) == {Verdict.DROPPED}


def test_resume_refuses_what_it_does_not_know(runtime: Runtime) -> None:
    """The error reaches whoever resumed the script."""
    with pytest.raises(LuaError, match="block or allow"):
        runtime.resume("forget", 9)
