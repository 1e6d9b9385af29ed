"""Classes of packets as data, and sending them: what became of each, by verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.events import Packets

if TYPE_CHECKING:
    from bridge.traffic import Traffic
    from netns.plan import Version

ACCEPTED, DROPPED, UNANSWERED = "accepted", "dropped", "unanswered"
VERSIONS: tuple[Version, Version] = (4, 6)

_TCP_PORT, _UDP_PORT, _DNS_PORT = 8080, 9000, 53
_DATA = bytes(range(250)) * 8
# Long enough for the first retransmission, a second later (RFC 6298).
_TCP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class PacketClass:
    """One class: real sockets (``tcp``, ``udp``, ``ping``) or built questions (``dns``).

    ``names`` are what DNS questions ask for; elsewhere ``count`` exchanges are held.
    """

    key: str
    title: str
    kind: str
    expected: str | None = None
    count: int = 1
    names: tuple[str, ...] = ()
    port: int = _DNS_PORT

    def key_of(self, version: Version) -> str:
        """The name of the class over one IP version, as in events."""
        return f"{self.key}/{version}"


def send(traffic: Traffic, one: PacketClass, version: Version) -> Packets:
    """Send the class's packets from client to server; return what became of them.

    A conversation counts as ``accepted`` when it completed, an echo request when its
    reply came, a question when it arrived as sent, and to port 53 when its answer came
    too (``unanswered`` otherwise).
    """
    seen = _SENDERS[one.kind](traffic, one, version)
    sent = len(one.names) if one.kind == "dns" else one.count
    return Packets(
        one.key_of(version), one.title, version, sent, one.expected, dict(sorted(seen.items()))
    )


def _tcp(traffic: Traffic, one: PacketClass, version: Version) -> Counter[str]:
    endings: Counter[str] = Counter()
    for _ in range(one.count):
        exchange = traffic.tcp_exchange(
            port=_TCP_PORT, data=_DATA, version=version, timeout_s=_TCP_TIMEOUT_S
        )
        whole = exchange.completed and exchange.at_client == exchange.at_server == _DATA
        endings[ACCEPTED if whole else _ending(exchange.ending.value)] += 1
    return endings


def _udp(traffic: Traffic, one: PacketClass, version: Version) -> Counter[str]:
    endings: Counter[str] = Counter()
    for _ in range(one.count):
        exchange = traffic.udp_exchange(port=_UDP_PORT, data=_DATA[:500], version=version)
        endings[ACCEPTED if exchange.completed else _ending(exchange.ending.value)] += 1
    return endings


def _ending(ending: str) -> str:
    return {"unanswered": DROPPED, "completed": "changed"}.get(ending, ending)


def _ping(traffic: Traffic, one: PacketClass, version: Version) -> Counter[str]:
    ping = traffic.ping(version=version, count=one.count)
    return Counter({ACCEPTED: ping.received, DROPPED: ping.sent - ping.received})


def _dns(traffic: Traffic, one: PacketClass, version: Version) -> Counter[str]:
    from bridge.traffic import Verdict, dns_question  # noqa: PLC0415 (slow to import)

    questions = [
        dns_question(name, version=version, ident=number, sport=40000 + number, dport=one.port)
        for number, name in enumerate(one.names, start=1)
    ]
    verdicts: Counter[str] = Counter()
    for outcome in traffic.send(questions):
        lacking = one.port == _DNS_PORT and not outcome.answered
        if outcome.verdict is Verdict.ACCEPTED and lacking:
            verdicts[UNANSWERED] += 1
        else:
            verdicts[outcome.verdict.value] += 1
    return verdicts


_SENDERS = {"tcp": _tcp, "udp": _udp, "ping": _ping, "dns": _dns}
