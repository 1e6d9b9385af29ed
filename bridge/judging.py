"""One packet at a time through a policy, and what policy and kernel did with it.

    with Judge.open(policy, []) as judge:
        judged = judge.judge(1, packet)

The policy is at the router between client and server. After each packet the counters of
its hooks tell whether the policy saw it, and what it decided; what arrives at the server,
or comes back, tells what became of it. So a packet that the policy dropped is told from
one that the kernel would not have forwarded anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.errors import PolicyError
from bridge.events import Judged
from bridge.pcap import summary

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.lunatik import Lunatik, Runtime
    from bridge.netlink import Value
    from bridge.traffic import Outcome, Packet, Traffic
    from netns import Topology

UNSEEN = "not forwarded"
"""What the kernel dropped without the policy's doing."""
QUEUED = "queued"
"""What the policy left to a program in user space, and none let pass."""
SKIPPED = "skipped"
"""What could not be sent."""

# A rule that asks for the state has the kernel track connections.
_TRACKING = """
table inet tracking {
  chain forward {
    type filter hook forward priority 100;
    ct state new counter
  }
}
"""
_ASKS_FOR_STATE = re.compile(r"\b(?:ctstate|connmark)\b")

# Which packets the router forwards, and whereto: by where they come from alone.
_ROUTES = """
rule add iif eth0 lookup 100
route add default via {server} dev eth1 table 100
route add default via {client} dev eth0
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """What all hooks of a runtime have counted."""

    packets: int
    dropped: int
    queued: int
    errors: int


class Judge:
    """Sends packets through a policy that is in force; see open()."""

    def __init__(self, traffic: Traffic, runtime: Runtime) -> None:
        self._traffic = traffic
        self._runtime = runtime
        self._counts = self._read()

    @classmethod
    @contextmanager
    def open(
        cls,
        policy: tuple[str, str],
        resumes: Sequence[Sequence[Value]],
        *,
        module: Path | None = None,
    ) -> Iterator[Judge]:
        """Put a policy, by name and source, into force, and resume it so often.

        Packets of any addresses go from client to server, and nobody there answers.
        The router tracks connections for a policy that asks for their state. Raises
        LuaError, ModuleError, TopologyError, PolicyError for one without hooks.
        """
        from bridge.lunatik import Lunatik  # noqa: PLC0415 (slow to import)
        from bridge.traffic import Traffic  # noqa: PLC0415
        from netns import Topology  # noqa: PLC0415

        with Lunatik.load(module) as lunatik, Topology.router() as topology:
            _route_everything(topology)
            if _ASKS_FOR_STATE.search(policy[1]):
                topology["router"].run(["nft", "-f", "-"], stdin=_TRACKING, check=True)
            with _runtime(lunatik, topology, policy) as runtime, Traffic(topology) as traffic:
                for arguments in resumes:
                    runtime.resume(*arguments)
                yield cls(traffic, runtime)

    def judge(self, number: int, packet: Packet) -> Judged:
        """Send one scapy packet that begins with IP or IPv6; say what became of it.

        Raises TrafficError where it cannot be sent, ModuleError where the runtime is
        not there any more.
        """
        (outcome,) = self._traffic.send(packet)
        before, self._counts = self._counts, self._read()
        failed = self._counts.errors > before.errors
        return Judged(
            number=number,
            verdict=_verdict(outcome, before, self._counts),
            seen_by_policy=self._counts.packets > before.packets,
            sent=summary(outcome.packet),
            arrived=None if outcome.seen is None else summary(outcome.seen),
            diff=tuple(str(one) for one in outcome.diff),
            answers=tuple(summary(one) for one in outcome.answers),
            last_seen=outcome.last_seen,
            error=self._runtime.info().last_error if failed else None,
        )

    def _read(self) -> Counts:
        hooks = self._runtime.hooks()
        return Counts(
            packets=sum(one.packets for one in hooks),
            dropped=sum(one.dropped for one in hooks),
            queued=sum(one.queued for one in hooks),
            errors=sum(one.errors for one in hooks),
        )


@contextmanager
def _runtime(
    lunatik: Lunatik, topology: Topology, policy: tuple[str, str]
) -> Iterator[Runtime]:
    name, source = policy
    netns = topology["router"].netns
    with lunatik.runtime(name, source=source, sleep=False, netns=netns) as runtime:
        if not runtime.hooks():
            raise PolicyError(
                f"{name} registers no hook, so no packet would meet it",
                cure="call netfilter.register in its body; see lua/accept.lua",
            )
        yield runtime


def _route_everything(topology: Topology) -> None:
    """Have the router forward what comes from the client, whatever its addresses are.

    The server keeps none of its own, so that it does not answer.
    """
    router, server = topology["router"], topology["server"]
    link_in, link_out = topology.plan.links
    for version in (4, 6):
        routes = _ROUTES.format(
            client=link_in.left.address(version), server=link_out.right.address(version)
        )
        router.run(["ip", f"-{version}", "-batch", "-"], stdin=routes, check=True)
    server.run(["ip", "addr", "flush", "dev", "eth0"], check=True)


def _verdict(outcome: Outcome, before: Counts, after: Counts) -> str:
    """Return the verdict; what was lost without a drop was not the policy's doing."""
    if outcome.seen is not None or after.dropped > before.dropped:
        return str(outcome.verdict)
    return QUEUED if after.queued > before.queued else UNSEEN


def as_sent(raw: bytes) -> Any:
    """Return the scapy packet that leaves with exactly these bytes.

    Raises ValueError where scapy cannot write what it has read.
    """
    from scapy.layers.inet import IP  # noqa: PLC0415 (slow to import)
    from scapy.layers.inet6 import IPv6  # noqa: PLC0415

    packet = IP(raw) if raw[0] >> 4 == 4 else IPv6(raw)
    if bytes(packet) != raw:
        raise ValueError(f"scapy writes it otherwise than it is: {packet.summary()}")
    return packet
