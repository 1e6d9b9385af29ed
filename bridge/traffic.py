"""Send packets through a topology and establish what became of each.

    with Topology.router() as topology, Traffic(topology) as traffic:
        for outcome in traffic.send(dns_question("example.com")):
            print(outcome)

Scapy builds and reads the packets; kernel sockets in the hosts carry them. Captures at
every interface run before the first packet leaves, and nothing here waits for time to
pass. After the packets, a **barrier** frame follows them over each link in turn. It is
not IP, so no netfilter hook sees it; and since one CPU handles the frames of a veth link
in order, whatever was to be forwarded has been forwarded when the barrier is through.
"Dropped" therefore means that the packet is not coming any more, on a machine of any
speed. Policies that hold packets back (netem delays, NFQUEUE) are outside this argument;
``settle_s`` waits for those.

Source: net/core/dev.c (netif_rx, process_backlog) and drivers/net/veth.c, Linux 6.12.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bridge import capture as capturing
from bridge import exchange, matching, packetdiff
from bridge.capture import Capture, Delivery, Frame
from bridge.errors import TrafficError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from bridge.exchange import DnsServer, Exchange, Ping
    from netns import Hop, Topology
    from netns.plan import Version

Packet: TypeAlias = Any  # scapy.packet.Packet; scapy is imported when it is needed

_MTU = 1500
_BURST = 64
_IPPROTO_RAW = 255


class Verdict(StrEnum):
    """What became of one injected packet."""

    ACCEPTED = "accepted"
    """It arrived as sent, apart from what routers change."""
    CHANGED = "changed"
    """It arrived, but not as sent; ``diff`` says how."""
    DROPPED = "dropped"
    """It did not arrive, and nobody answered."""
    ANSWERED = "answered"
    """It did not arrive, but somebody on the way answered, as a reject rule does."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One injected packet and what became of it.

    ``packet`` is the packet as it left, ``seen`` as it arrived (None if it did not);
    ``answers`` are packets that came back to the sender because of it, from the target
    or from a router, whatever the verdict; ``arrivals`` counts copies; ``last_seen`` is
    the host, with its interface, that it got to.
    """

    packet: Packet
    verdict: Verdict
    seen: Packet | None
    diff: tuple[packetdiff.FieldDiff, ...]
    answers: tuple[Packet, ...]
    arrivals: int
    last_seen: str

    @property
    def answered(self) -> bool:
        """Whether anything came back to the sender."""
        return bool(self.answers)

    def __str__(self) -> str:
        """One line, cause first: ``changed (IP.ttl: 63 -> 9): IP / UDP 192.0.2.1:…``."""
        reasons = [str(one) for one in self.diff]
        if self.seen is None:
            reasons.append(f"last seen at {self.last_seen}")
        if self.arrivals > 1:
            reasons.append(f"{self.arrivals} copies")
        if self.answers:
            reasons.append("answer: " + self.answers[0].summary())
        detail = f" ({'; '.join(reasons)})" if reasons else ""
        return f"{self.verdict}{detail}: {self.packet.summary()}"


class Traffic:
    """Sends packets between the hosts of a topology, watching every link.

    ``timeout_s`` bounds every wait and is never reached while the links work.
    ``buffer_bytes`` is what the kernel may queue for each capture.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        timeout_s: float = 60.0,
        buffer_bytes: int = capturing.BUFFER_BYTES,
    ) -> None:
        self.topology = topology
        self.timeout_s = timeout_s
        self._buffer_bytes = buffer_bytes
        self._stack = ExitStack()
        self._captures: dict[tuple[str, str], Capture] = {}
        self._sources: dict[tuple[str, str], Capture | Delivery] = {}
        self._arrived: dict[tuple[str, str], list[Frame]] = {}
        self._links: dict[tuple[str, str], socket.socket] = {}
        self._last_frames: dict[Frame, tuple[int, Outcome]] = {}
        self._lost_before: dict[Capture, int] = {}
        # So that other traffic's barriers on the same links are not taken for ours.
        self._token = os.urandom(8)
        self._barriers = itertools.count(1)
        self._tags = itertools.cycle(range(1, 1 << 16))
        self._dns_servers: list[DnsServer] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for host in self.topology:
                for interface in host.interfaces:
                    place = (host.name, interface.name)
                    capture = Capture(
                        host,
                        interface.name,
                        buffer_bytes=self._buffer_bytes,
                        barrier_token=self._token,
                    )
                    self._captures[place] = self._sources[place] = stack.enter_context(capture)
                    link = host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                    self._links[place] = stack.enter_context(link)
                    link.bind((interface.name, 0))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def frames(self) -> list[Frame]:
        """All frames seen so far on all links, in order of time (the last 65,536 each)."""
        self._drain()
        everything = itertools.chain.from_iterable(c.frames for c in self._captures.values())
        return sorted(everything, key=lambda frame: frame.time_ns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all frames to ``path`` as one pcapng, verdicts as comments.

        Each interface of each host is one interface of the file, so that a packet can be
        followed over all links.
        """
        comments = {
            frame: f"#{number} {outcome}"
            for frame, (number, outcome) in self._last_frames.items()
        }
        capturing.save(path, self.frames, comments)

    def send(
        self,
        packets: Packet | Iterable[Packet],
        *,
        src: str = "client",
        dst: str = "server",
        via: Literal["link", "socket"] = "link",
        observe: Literal["link", "socket"] = "link",
        ignore: Iterable[str] = (),
        within: Mapping[str, int] | None = None,
        settle_s: float = 0.0,
    ) -> list[Outcome]:
        """Inject packets at ``src`` and say for each what became of it on the way to ``dst``.

        A packet starts with IP or IPv6; source and destination, where left out, are those
        of the hosts. Where they are left out too, an IPv4 packet gets an identification
        and an IPv6 packet a flow label of its own, by which it is recognised if the
        policy changes it. ``via="link"`` puts it on the wire, past the sender's own
        hooks; ``via="socket"`` sends it through the sender's LOCAL_OUT and POST_ROUTING.
        ``observe="link"`` looks at what arrives on the target's link, before the target's
        own hooks; ``observe="socket"`` at what the target's sockets get, after PRE_ROUTING
        and LOCAL_IN, and is what to use for hooks there.
        ``ignore`` and ``within`` are those of ``packetdiff.diff``. ``settle_s`` waits for
        packets that are held back on purpose, and ends early when all have arrived.

        Raises TrafficError for a packet that cannot be sent, and when the capture lost
        frames: then nothing can be said.
        """
        path = self._path(src, dst)
        sent = [self._complete(one, path) for one in _each(packets)]
        with self._delivery(sent, dst, observe):
            self._begin()
            with _one_cpu():
                self._inject(sent, path, via)
                self._let_through(path)
            if settle_s:
                self._settle(path, len(sent), settle_s)
            self._drain()
        self._require_complete(path)
        return self._judge(sent, path, observe, tuple(ignore), within)

    def ping(
        self,
        src: str = "client",
        dst: str = "server",
        *,
        version: Version = 4,
        count: int = 1,
        size_bytes: int = 56,
    ) -> Ping:
        """Send ICMP or ICMPv6 echo requests from a socket; the target's kernel answers."""
        path = self._path(src, dst)
        self._begin()
        with _one_cpu():
            return exchange.ping(
                self.topology[src],
                path[-1].into.address(version),
                lambda: self._let_through(path),
                version=version,
                count=count,
                size_bytes=size_bytes,
            )

    def tcp_exchange(
        self,
        client: str = "client",
        server: str = "server",
        *,
        port: int = 7,
        data: bytes = b"hello",
        version: Version = 4,
        listen: bool = True,
        timeout_s: float = 5.0,
    ) -> Exchange:
        """Connect with real sockets, send ``data``, have it echoed, and say what happened.

        Without ``listen`` nobody serves the port. ``timeout_s`` seconds are waited only
        when packets are dropped, since the kernel goes on retransmitting.
        """
        address = self._path(client, server)[-1].into.address(version)
        hosts = (self.topology[client], self.topology[server])
        return exchange.tcp(*hosts, (address, port), data, listen=listen, timeout_s=timeout_s)

    def udp_exchange(
        self,
        client: str = "client",
        server: str = "server",
        *,
        port: int = 7,
        data: bytes = b"hello",
        version: Version = 4,
        listen: bool = True,
    ) -> Exchange:
        """Send one datagram from a real socket, have it echoed, and say what happened."""
        path = self._path(client, server)
        hosts = (self.topology[client], self.topology[server])
        address = (path[-1].into.address(version), port)
        self._begin()
        with _one_cpu():
            return exchange.udp(
                *hosts, address, data, lambda: self._let_through(path), listen=listen
            )

    @contextmanager
    def dns_server(self, host: str = "server", *, port: int = 53) -> Iterator[DnsServer]:
        """Run a DNS server that answers A and AAAA for any name, on IPv4 and IPv6.

        While it runs, ``send`` waits until it has answered what reached it.
        """
        with exchange.DnsServer(self.topology[host], port) as server:
            self._dns_servers.append(server)
            try:
                yield server
            finally:
                self._dns_servers.remove(server)

    def _path(self, source: str, destination: str) -> tuple[Hop, ...]:
        self.topology[source]  # the topology's error names the hosts there are
        self.topology[destination]
        try:
            return self.topology.plan.path(source, destination)
        except ValueError as error:
            raise TrafficError(str(error)) from error

    def _complete(self, packet: Packet, path: Sequence[Hop]) -> Packet:
        """Fill in what the caller left out of ``packet``; read it as it will leave."""
        versions: dict[str, Version] = {"IP": 4, "IPv6": 6}
        version = versions.get(type(packet).__name__)
        if version is None:
            raise TrafficError(
                f"cannot send {packet!r}: it does not start with IP or IPv6",
                cure="leave Ether out; the link's addresses are filled in",
            )
        absent = {"src", "dst", "id", "fl"} - set(packet.fields)
        for name, interface in (("src", path[0].out), ("dst", path[-1].into)):
            if name in absent:
                setattr(packet, name, interface.address(version))
        tag = "id" if version == 4 else "fl"
        if tag in absent:
            setattr(packet, tag, next(self._tags))
        data = bytes(packet)
        if len(data) > _MTU:
            raise TrafficError(
                f"a packet of {len(data)} bytes is larger than the links carry ({_MTU})",
                cure="send less data, or fragment it: scapy.layers.inet.fragment",
            )
        return type(packet)(data)

    @contextmanager
    def _delivery(self, sent: Sequence[Packet], dst: str, observe: str) -> Iterator[None]:
        """Listen at the target's sockets too, if that is what is to be observed."""
        if observe == "link":
            yield
            return
        protocols = {(packet.version, _protocol(packet)) for packet in sent}
        delivery = Delivery(self.topology[dst], protocols)
        self._sources[dst, Delivery.SOCKET] = delivery
        try:
            yield
        finally:
            del self._sources[dst, Delivery.SOCKET]
            delivery.close()

    def _inject(self, sent: Sequence[Packet], path: Sequence[Hop], via: str) -> None:
        with self._injector(path[0], via) as inject:
            for number, packet in enumerate(sent, start=1):
                inject(packet)
                if number % _BURST == 0:
                    self._drain()

    @contextmanager
    def _injector(self, hop: Hop, via: str) -> Iterator[Any]:
        """Yield a function that sends one packet at the start of the path."""
        if via == "link":
            link = self._links[hop.sender, hop.out.name]
            header = _mac(hop.into.mac) + _mac(hop.out.mac)
            types = {"IP": b"\x08\x00", "IPv6": b"\x86\xdd"}
            yield lambda packet: link.send(
                header + types[type(packet).__name__] + bytes(packet)
            )
            return
        host = self.topology[hop.sender]
        with ExitStack() as stack:
            families = {"IP": socket.AF_INET, "IPv6": socket.AF_INET6}
            sockets = {
                name: stack.enter_context(host.socket(family, socket.SOCK_RAW, _IPPROTO_RAW))
                for name, family in families.items()
            }
            yield lambda packet: _send_raw(sockets[type(packet).__name__], packet)

    def _let_through(self, path: Sequence[Hop]) -> None:
        """Return when all that was sent along ``path``, and its answers, went through.

        Address resolution holds the first packets back for a round trip each way.
        """
        back = [type(hop)(hop.receiver, hop.into, hop.sender, hop.out) for hop in path[::-1]]
        for _ in range(1 if self.topology.static_neighbours else 3):
            self._barrier(path)
            for server in self._dns_servers:
                server.wait_idle(self.timeout_s)
            self._barrier(back)
        self._drain()

    def _barrier(self, path: Sequence[Hop]) -> None:
        for hop in path:
            number = next(self._barriers)
            frame = _mac(hop.into.mac) + _mac(hop.out.mac)
            frame += capturing.barrier(self._token, number)
            self._drain()  # so that the queue has room for the barrier itself
            self._links[hop.sender, hop.out.name].send(frame)
            self._await_barrier(self._captures[hop.receiver, hop.into.name], number)

    def _await_barrier(self, capture: Capture, number: int) -> None:
        deadline = time.monotonic() + self.timeout_s
        while capture.barrier < number:
            capture.require_complete(lost_before=self._lost_before[capture])
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TrafficError(
                    f"nothing reaches {capture.interface} of {capture.host} any more",
                    cure="check that the link is up and that nothing but hooks filters it",
                )
            select.select([capture], [], [], remaining_s)
            self._drain()

    def _settle(self, path: Sequence[Hop], expected: int, settle_s: float) -> None:
        """Wait up to ``settle_s`` seconds for packets that are held back on purpose."""
        place = (path[-1].receiver, path[-1].into.name)
        deadline = time.monotonic() + settle_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            packets = [
                matching.network_packet(one.data) for one in self._arrived.get(place, [])
            ]
            if sum(packet is not None for packet in packets) >= expected:
                break
            select.select(list(self._captures.values()), [], [], remaining_s)
            self._drain()
        self._let_through(path)

    def _drain(self) -> None:
        for place, source in self._sources.items():
            self._arrived.setdefault(place, []).extend(source.drain())

    def _begin(self) -> None:
        """Forget what arrived, or was lost, before: it is not what is asked about now."""
        self._drain()
        self._arrived = {}
        self._lost_before = {one: one.lost for one in self._captures.values()}

    def _require_complete(self, path: Sequence[Hop]) -> None:
        for hop in path:
            for place in ((hop.sender, hop.out.name), (hop.receiver, hop.into.name)):
                capture = self._captures[place]
                capture.require_complete(lost_before=self._lost_before[capture])

    def _judge(
        self,
        sent: Sequence[Packet],
        path: Sequence[Hop],
        observe: str,
        ignore: tuple[str, ...],
        within: Mapping[str, int] | None,
    ) -> list[Outcome]:
        """Put together what each packet met."""
        trails = self._trails([bytes(packet) for packet in sent], path, observe)
        answers = self._answers(sent, path[0])
        outcomes = []
        for number, (packet, trail) in enumerate(zip(sent, trails, strict=True)):
            arrivals = trail[-1]
            seen, differences = _compare(packet, arrivals, len(path) - 1, ignore, within)
            places = [frames[0] for frames in trail if frames]
            outcome = Outcome(
                packet=packet,
                verdict=_verdict(seen, differences, answers[number]),
                seen=seen,
                diff=tuple(differences),
                answers=tuple(answers[number]),
                arrivals=len(arrivals),
                last_seen=_place(places, path[0]),
            )
            outcomes.append(outcome)
            self._last_frames.update((frame, (number + 1, outcome)) for frame in places[-1:])
        for frame in list(self._last_frames)[: -capturing.MOST_FRAMES]:
            del self._last_frames[frame]
        return outcomes

    def _trails(
        self, raw: Sequence[bytes], path: Sequence[Hop], observe: str
    ) -> list[list[list[Frame]]]:
        """For each packet, the frames that are it at each stage of the path."""
        stages = [((hop.receiver, hop.into.name), number) for number, hop in enumerate(path)]
        if observe == "socket":
            stages.append(((path[-1].receiver, Delivery.SOCKET), len(path) - 1))
        found = [self._found(raw, place, routers) for place, routers in stages]
        return [[stage[number] for stage in found] for number in range(len(raw))]

    def _found(
        self, raw: Sequence[bytes], place: tuple[str, str], routers: int
    ) -> list[list[Frame]]:
        """The frames of each packet at one place, which is behind so many routers."""
        frames = self._network_frames(place)
        expected = [matching.after_hops(matching.trimmed(packet), routers) for packet in raw]
        matches = matching.match(expected, [packet for _, packet in frames])
        return [[frames[number][0] for number in numbers] for numbers in matches]

    def _answers(self, sent: Sequence[Packet], hop: Hop) -> list[list[Packet]]:
        """The packets that came back, each with the packet it answers."""
        answers: list[list[Packet]] = [[] for _ in sent]
        frames = self._network_frames((hop.sender, hop.out.name))
        if frames:
            questions = _Questions(sent)
            for _, raw in frames:
                answer = _read(raw)
                number = questions.answered_by(answer, raw)
                if number is not None:
                    answers[number].append(answer)
        return answers

    def _network_frames(self, place: tuple[str, str]) -> list[tuple[Frame, bytes]]:
        packets = [
            (frame, matching.network_packet(frame.data))
            for frame in self._arrived.get(place, [])
        ]
        return [(frame, packet) for frame, packet in packets if packet is not None]


class _Questions:
    """Finds the sent packet that an answer belongs to."""

    def __init__(self, sent: Sequence[Packet]) -> None:
        self._sent = sent
        self._quotable: dict[object, list[int]] = {}
        self._similar: dict[bytes, list[tuple[int, int]]] = {}
        for number, packet in enumerate(sent):
            key = matching.identity(bytes(packet)).key
            self._quotable.setdefault(key, []).append(number)
            # Heaps of (answers so far, number): ascending, so heaps already.
            self._similar.setdefault(packet.hashret(), []).append((0, number))

    def answered_by(self, answer: Packet, raw: bytes) -> int | None:
        """The number of the packet that ``answer`` is about, or None.

        An error quotes its packet and is told by that. Any other answer goes to the
        first of those packets it fits that has had fewest answers.
        """
        quoted = matching.quoted(raw)
        if quoted is not None:
            exact = self._quotable.get(matching.identity(quoted).key)
            if exact:
                return exact.pop(0) if len(exact) > 1 else exact[0]
        heap = self._similar.get(answer.hashret(), [])
        passed = []
        found = None
        while heap and found is None:
            count, number = heapq.heappop(heap)
            if answer.answers(self._sent[number]):
                found = number
                passed.append((count + 1, number))
            else:
                passed.append((count, number))
        for entry in passed:
            heapq.heappush(heap, entry)
        return found


def dns_question(
    name: str,
    qtype: str = "A",
    *,
    version: Version = 4,
    ident: int | None = None,
    sport: int = 40000,
    dport: int = 53,
) -> Packet:
    """Build a DNS question; ``Traffic.send`` fills in the addresses.

    ``ident`` is the DNS transaction id; left out, scapy's default of 0 is replaced by one
    that depends on the name, so that answers to different questions are told apart.
    """
    from scapy.layers.dns import DNS, DNSQR  # noqa: PLC0415 - slow to import
    from scapy.layers.inet import IP, UDP  # noqa: PLC0415
    from scapy.layers.inet6 import IPv6  # noqa: PLC0415

    if ident is None:
        ident = sum(name.encode() + qtype.encode()) & 0xFFFF
    question = DNS(id=ident, rd=1, qd=DNSQR(qname=name, qtype=qtype))
    return (IP() if version == 4 else IPv6()) / UDP(sport=sport, dport=dport) / question


def _each(packets: Packet | Iterable[Packet]) -> list[Packet]:
    """Copies of all packets meant: one may stand for several (``IP(ttl=[1, 2])``)."""
    given = [packets] if hasattr(packets, "fields_desc") else packets
    return [one for packet in given for one in packet]


def _read(raw: bytes) -> Packet:
    from scapy.layers.inet import IP  # noqa: PLC0415 - slow to import
    from scapy.layers.inet6 import IPv6  # noqa: PLC0415

    return IP(raw) if raw[0] >> 4 == 4 else IPv6(raw)


def _compare(
    packet: Packet,
    frames: Sequence[Frame],
    routers: int,
    ignore: tuple[str, ...],
    within: Mapping[str, int] | None,
) -> tuple[Packet | None, list[packetdiff.FieldDiff]]:
    if not frames:
        return None, []
    raw = matching.network_packet(frames[0].data)
    expected = matching.after_hops(matching.trimmed(bytes(packet)), routers)
    if raw == expected:
        return _read(expected), []
    assert raw is not None
    seen = _read(raw)
    return seen, packetdiff.diff(_read(expected), seen, ignore=ignore, within=within)


def _verdict(
    seen: Packet | None, differences: Sequence[Any], answers: Sequence[Packet]
) -> Verdict:
    if seen is not None:
        return Verdict.CHANGED if differences else Verdict.ACCEPTED
    return Verdict.ANSWERED if answers else Verdict.DROPPED


def _place(frames: Sequence[Frame], first: Hop) -> str:
    """Where the last frame of a trail was seen; without any, at the sender."""
    if not frames:
        return f"{first.sender} {first.out.name}"
    return f"{frames[-1].host} {frames[-1].interface}"


def _protocol(packet: Packet) -> int:
    number: int = packet.proto if packet.version == 4 else packet.nh
    return number


def _send_raw(sender: socket.socket, packet: Packet) -> None:
    try:
        sender.sendto(bytes(packet), (packet.dst, 0))
    except PermissionError:
        pass  # a hook in LOCAL_OUT dropped it, and the kernel says so to the sender
    except OSError as error:
        raise TrafficError(f"cannot send {packet.summary()}: {error.strerror}") from error


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@contextmanager
def _one_cpu() -> Iterator[None]:
    """Keep the calling thread on one CPU, whose queue keeps frames in order."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
