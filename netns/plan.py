"""The address plan of a topology: a chain of hosts, one link between neighbours.

Everything here is arithmetic and text; nothing touches the kernel. Addresses come from
the documentation ranges (RFC 5737, RFC 3849), which no real network uses, and are the
same in every run, since each topology is a world of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Version = Literal[4, 6]

_NETWORKS_4 = ("192.0.2", "198.51.100", "203.0.113")
PREFIX_LENGTHS: dict[int, int] = {4: 24, 6: 64}
MOST_HOSTS = len(_NETWORKS_4) + 1


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a link, with the addresses it is given."""

    name: str
    mac: str
    ipv4: str
    ipv6: str

    def address(self, version: Version) -> str:
        """The interface's IPv4 or IPv6 address, without prefix length."""
        return self.ipv4 if version == 4 else self.ipv6


@dataclass(frozen=True, slots=True)
class Link:
    """A veth pair between two neighbours of the chain."""

    number: int
    left: Interface
    right: Interface

    def network(self, version: Version) -> str:
        """The link's network with its prefix length."""
        if version == 4:
            return f"{_NETWORKS_4[self.number]}.0/24"
        return f"2001:db8:{self.number + 1:x}::/64"


@dataclass(frozen=True, slots=True)
class Hop:
    """One crossing of a link: out of ``sender``'s interface, into ``receiver``'s."""

    sender: str
    out: Interface
    receiver: str
    into: Interface


@dataclass(frozen=True, slots=True)
class Plan:
    """Hosts in a row and the links between them."""

    hosts: tuple[str, ...]
    links: tuple[Link, ...]

    def left_of(self, host: str) -> Link | None:
        """The link towards the chain's start, or None at the start."""
        index = self.hosts.index(host)
        return self.links[index - 1] if index else None

    def right_of(self, host: str) -> Link | None:
        """The link towards the chain's end, or None at the end."""
        index = self.hosts.index(host)
        return self.links[index] if index < len(self.links) else None

    def interfaces(self, host: str) -> tuple[Interface, ...]:
        """The host's interfaces, the one towards the start first."""
        left, right = self.left_of(host), self.right_of(host)
        ends = (left.right if left else None, right.left if right else None)
        return tuple(end for end in ends if end is not None)

    def peer(self, interface: Interface) -> Interface:
        """The interface at the other end of ``interface``'s link."""
        for link in self.links:
            if interface == link.left:
                return link.right
            if interface == link.right:
                return link.left
        raise ValueError(f"{interface} is not part of this plan")

    def path(self, source: str, destination: str) -> tuple[Hop, ...]:
        """The hops from one host to another; raises ValueError for the same or unknown."""
        start, end = self.hosts.index(source), self.hosts.index(destination)
        if start == end:
            raise ValueError(f"no link is crossed from {source} to itself")
        if start > end:
            there = self.path(destination, source)
            return tuple(Hop(h.receiver, h.into, h.sender, h.out) for h in reversed(there))
        return tuple(
            Hop(self.hosts[n], self.links[n].left, self.hosts[n + 1], self.links[n].right)
            for n in range(start, end)
        )

    def is_router(self, host: str) -> bool:
        """Whether the host stands between others and so forwards."""
        return 0 < self.hosts.index(host) < len(self.hosts) - 1


def chain(*hosts: str) -> Plan:
    """Plan a chain of two to four hosts; those in the middle are routers.

    Raises ValueError for another number of hosts or a name that occurs twice.
    """
    if not 2 <= len(hosts) <= MOST_HOSTS or len(set(hosts)) != len(hosts):
        raise ValueError(f"a chain has 2 to {MOST_HOSTS} hosts of different names: {hosts}")
    links = tuple(_link(number, len(hosts)) for number in range(len(hosts) - 1))
    return Plan(hosts, links)


def _link(number: int, host_count: int) -> Link:
    """Plan link ``number``: hosts are .1, a router is .254 (::fe) on each side."""
    left_is_router = number > 0
    right_is_router = number + 1 < host_count - 1
    # Two routers that face each other cannot both be .254.
    left_number = 254 if left_is_router else 1
    right_number = (253 if left_is_router else 254) if right_is_router else 1
    if not left_is_router and not right_is_router:
        right_number = 2
    return Link(
        number,
        _interface("eth1" if left_is_router else "eth0", number, left_number),
        _interface("eth0", number, right_number),
    )


def _interface(name: str, link: int, host: int) -> Interface:
    return Interface(
        name=name,
        mac=f"02:00:00:00:{link + 1:02x}:{host:02x}",
        ipv4=f"{_NETWORKS_4[link]}.{host}",
        ipv6=f"2001:db8:{link + 1:x}::{host:x}",
    )


def drawing(plan: Plan) -> str:
    """Draw the chain with names and addresses, for terminals and documents.

    >>> print(drawing(chain("client", "router", "server")))
    +--------+                               +--------+                               +--------+
    | client | eth0                     eth0 | router | eth1                     eth0 | server |
    |        |-------------------------------|        |-------------------------------|        |
    +--------+ 192.0.2.1         192.0.2.254 +--------+ 198.51.100.254   198.51.100.1 +--------+
               2001:db8:1::1  2001:db8:1::fe            2001:db8:2::fe  2001:db8:2::1
    """
    rows = ["", "", "", "", ""]
    for index, host in enumerate(plan.hosts):
        box = _box(host)
        rows = [row + part for row, part in zip(rows, box, strict=True)]
        if index < len(plan.links):
            wire = _wire(plan.links[index])
            rows = [row + part for row, part in zip(rows, wire, strict=True)]
    return "\n".join(row.rstrip() for row in rows)


def _box(host: str) -> list[str]:
    bar = "-" * (len(host) + 2)
    return [
        f"+{bar}+",
        f"| {host} |",
        f"| {' ' * len(host)} |",
        f"+{bar}+",
        " " * (len(bar) + 2),
    ]


def _wire(link: Link) -> list[str]:
    """The space between two boxes: interface names, the wire, both addresses."""
    pairs = [
        (link.left.name, link.right.name),
        (link.left.ipv4, link.right.ipv4),
        (link.left.ipv6, link.right.ipv6),
    ]
    width = max(len(left) + len(right) for left, right in pairs) + 2
    names, ipv4, ipv6 = (f" {left}{right:>{width - len(left)}} " for left, right in pairs)
    return [" " * (width + 2), names, "-" * (width + 2), ipv4, ipv6]
