"""Which arrival belongs to which injected packet.

Routers change little: they count the time to live down and correct the IPv4 header's
checksum. What should arrive is therefore known to the byte, and most arrivals are found
by equality. The rest is matched by likeness, strongest first: the tag each packet
carries (the IPv4 identification, the IPv6 flow label), then addresses, ports and payload.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_IPV4_HEADER = 20
_IPV6_HEADER = 40
_ICMP_ERRORS = {3, 4, 5, 11, 12}
_ICMPV6_ERRORS = {1, 2, 3, 4}
_ENOUGH = 6


@dataclass(frozen=True, slots=True)
class Identity:
    """What a packet can be recognised by."""

    version: int
    tag: int
    protocol: int
    source: bytes
    destination: bytes
    ports: bytes
    payload: bytes

    @property
    def key(self) -> tuple[object, ...]:
        """What is the same in a packet and in an error's quotation of it."""
        return (
            self.version,
            self.tag,
            self.protocol,
            self.source,
            self.destination,
            self.ports,
        )

    def likeness(self, other: Identity) -> int:
        """How sure it is that ``other`` is this packet, changed: 0 is not at all."""
        if self.version != other.version:
            return 0
        same_payload = self.payload == other.payload and len(self.payload) > 0
        return (
            4 * (self.tag == other.tag)
            + (self.protocol == other.protocol)
            + 2 * (self.source == other.source)
            + 2 * (self.destination == other.destination)
            + (self.ports[:2] == other.ports[:2])
            + (self.ports[2:] == other.ports[2:])
            + 3 * same_payload
        )


def identity(packet: bytes) -> Identity:
    """Read what identifies an IPv4 or IPv6 packet; short ones give empty parts."""
    if packet[0] >> 4 == 4:
        header = (packet[0] & 0xF) * 4
        tag, protocol = int.from_bytes(packet[4:6], "big"), packet[9]
        source, destination = packet[12:16], packet[16:20]
    else:
        header = _IPV6_HEADER
        tag, protocol = int.from_bytes(packet[1:4], "big") & 0xFFFFF, packet[6]
        source, destination = packet[8:24], packet[24:40]
    ports = packet[header : header + 4]
    payload = packet[header + 8 :]
    return Identity(packet[0] >> 4, tag, protocol, source, destination, ports, payload)


def quoted(packet: bytes) -> bytes | None:
    """The packet that an ICMP or ICMPv6 error is about; None for other packets.

    Sources: RFC 792; RFC 4443, section 2.4.
    """
    if packet[0] >> 4 == 4:
        start, protocol, errors = (packet[0] & 0xF) * 4, packet[9], _ICMP_ERRORS
    else:
        start, protocol, errors = _IPV6_HEADER, packet[6], _ICMPV6_ERRORS
    inner = packet[start + 8 :]
    if protocol not in {1, 58} or len(inner) < _IPV4_HEADER or packet[start] not in errors:
        return None
    if inner[0] >> 4 == 6 and len(inner) < _IPV6_HEADER:
        return None
    return inner


def network_packet(frame: bytes) -> bytes | None:
    """The IP packet in an Ethernet frame, without padding; None for other frames."""
    ethertype = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if ethertype == 0x0800 and len(packet) >= _IPV4_HEADER and packet[0] >> 4 == 4:
        return trimmed(packet)
    if ethertype == 0x86DD and len(packet) >= _IPV6_HEADER and packet[0] >> 4 == 6:
        return trimmed(packet)
    return None


def trimmed(packet: bytes) -> bytes:
    """Cut an IP packet at its own length field, as every router does."""
    if packet[0] >> 4 == 4:
        length = int.from_bytes(packet[2:4], "big")
        return packet[:length] if length >= _IPV4_HEADER else packet
    length = int.from_bytes(packet[4:6], "big")
    return packet[: _IPV6_HEADER + length]


def after_hops(packet: bytes, hops: int) -> bytes:
    """The packet as it looks after ``hops`` routers that did nothing but forward it."""
    if hops == 0:
        return packet
    aged = bytearray(packet)
    if packet[0] >> 4 == 6:
        aged[7] = max(packet[7] - hops, 0)
        return bytes(aged)
    aged[8] = max(packet[8] - hops, 0)
    aged[10:12] = _adjusted(packet[10:12], packet[8:10], bytes(aged[8:10]))
    return bytes(aged)


def match(expected: Sequence[bytes], arrived: Iterable[bytes]) -> list[list[int]]:
    """For each expected packet, the numbers of the arrivals that are it.

    Equal packets are told apart by their order, which links keep. More arrivals than
    one are copies. Arrivals that resemble nothing are in no list.
    """
    arrivals = list(arrived)
    found: list[list[int]] = [[] for _ in expected]
    unmatched = _match_equal(expected, arrivals, found)
    missing = [number for number, numbers in enumerate(found) if not numbers]
    _match_alike(expected, arrivals, missing, unmatched, found)
    return found


def _match_equal(
    expected: Sequence[bytes], arrivals: list[bytes], found: list[list[int]]
) -> list[int]:
    """Match by equality; return the numbers of the arrivals left over."""
    waiting: dict[bytes, deque[int]] = defaultdict(deque)
    for number, packet in enumerate(expected):
        waiting[packet].append(number)
    unmatched = []
    last: dict[bytes, int] = {}
    for number, packet in enumerate(arrivals):
        if waiting.get(packet):
            last[packet] = waiting[packet].popleft()
        if packet in last:
            found[last[packet]].append(number)
        else:
            unmatched.append(number)
    return unmatched


def _match_alike(
    expected: Sequence[bytes],
    arrivals: list[bytes],
    missing: list[int],
    unmatched: list[int],
    found: list[list[int]],
) -> None:
    """Match what changed on the way: the likest pair first, earlier before later."""
    wanted = {number: identity(expected[number]) for number in missing}
    seen = {number: identity(arrivals[number]) for number in unmatched}
    by_tag = defaultdict(list)
    for number, one in wanted.items():
        by_tag[one.version, one.tag].append(number)
    pairs = []
    for there, other in seen.items():
        # Almost always the tag survives; only where it did not is everything compared.
        candidates = by_tag.get((other.version, other.tag)) or missing
        pairs += [(-wanted[here].likeness(other), here, there) for here in candidates]
    taken: set[int] = set()
    for likeness, here, there in sorted(pairs):
        if -likeness >= _ENOUGH and there not in taken and not found[here]:
            found[here].append(there)
            taken.add(there)


def _adjusted(checksum: bytes, before: bytes, after: bytes) -> bytes:
    """Update an Internet checksum for one changed 16-bit word (RFC 1624, equation 3)."""
    total = ~int.from_bytes(checksum, "big") & 0xFFFF
    total += (~int.from_bytes(before, "big") & 0xFFFF) + int.from_bytes(after, "big")
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
