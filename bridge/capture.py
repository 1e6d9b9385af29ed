"""Capture what arrives at the interfaces of a topology, in the kernel.

A capture is running when its constructor returns: frames that arrive from then on are
queued by the kernel, however slow the reader is. What the queue cannot hold is counted
by the kernel and makes the capture inconclusive.

Sources: packet(7), the pcapng draft (draft-ietf-opsawg-pcapng).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import TrafficError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from netns import Host

BUFFER_BYTES = 32 << 20
MOST_FRAMES = 1 << 16

# Frames of this type (IEEE 802 local experimental) mark the end of a stretch of traffic.
BARRIER_ETHERTYPE = 0x88B5

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_IGNORE_OUTGOING = 23
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_MEMINFO = 55
_FLOWINFO = 11  # IPV6_FLOWINFO
_SNAPSHOT_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Frame:
    """One Ethernet frame as it arrived: when, where and what.

    ``time_ns`` is the kernel's time of arrival, in nanoseconds since 1970.
    """

    time_ns: int
    host: str
    interface: str
    data: bytes

    @property
    def ethertype(self) -> int:
        """The frame's EtherType; 0 for a runt."""
        return int.from_bytes(self.data[12:14], "big")


def barrier(token: bytes, number: int) -> bytes:
    """Return what a barrier frame has behind its addresses; ``token`` is 8 bytes."""
    return BARRIER_ETHERTYPE.to_bytes(2, "big") + token + number.to_bytes(8, "big")


class Capture:
    """Everything that arrives at one interface, until closed.

    A veth link delivers each frame at exactly one other end, so captures of arrivals at
    all interfaces of a topology see each crossing of a link exactly once.
    """

    def __init__(
        self,
        host: Host,
        interface: str,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        barrier_token: bytes = bytes(8),
    ) -> None:
        """Start capturing. ``buffer_bytes`` is what the kernel may queue for the reader.

        ``barrier_token`` are the 8 bytes that tell barriers from those of others. Raises
        TrafficError when the interface does not exist.
        """
        self.host = host.name
        self.interface = interface
        self.frames: deque[Frame] = deque(maxlen=MOST_FRAMES)
        self.lost = 0
        self.barrier = 0
        self._token = barrier_token
        # Protocol 0 receives nothing; frames flow from the bind on, from this interface only.
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            # The kernel doubles the figure, for its own book-keeping (socket(7)).
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes // 2)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setblocking(False)
            self._socket.bind((interface, _ETH_P_ALL))
        except OSError as error:
            self._socket.close()
            raise TrafficError(
                f"cannot capture on {interface} of {host.name}: {error.strerror}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop capturing; the frames stay."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, for select(2): readable when frames are queued."""
        return self._socket.fileno()

    def drain(self) -> list[Frame]:
        """Take what the kernel has queued: keep it in ``frames`` and return it.

        Also brings up to date ``lost``, the number of frames the queue could not hold, and
        ``barrier``, the number in the last barrier frame; such frames are not kept.
        """
        new = []
        while (frame := self._receive()) is not None:
            if frame.ethertype == BARRIER_ETHERTYPE:
                if frame.data[14:22] == self._token:
                    self.barrier = int.from_bytes(frame.data[22:30], "big")
            else:
                new.append(frame)
        self.frames.extend(new)
        self.lost += self._dropped_since()
        return new

    def require_complete(self, *, lost_before: int = 0) -> None:
        """Raise TrafficError if frames were lost: then absence proves nothing.

        ``lost_before`` is the value of ``lost`` up to which losses do not matter.
        """
        if self.lost > lost_before:
            raise TrafficError(
                f"the capture on {self.interface} of {self.host} lost "
                f"{self.lost - lost_before} frames, "
                "so nothing can be said about packets that were not seen",
                cure="send fewer packets at a time, or give the capture a larger buffer",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the frames to ``path`` as pcapng."""
        self.drain()
        save(path, self.frames)

    def _receive(self) -> Frame | None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_SNAPSHOT_BYTES, 64)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # told once, when the interface went down
                return self._receive()
            raise TrafficError(
                f"the capture on {self.interface} of {self.host} broke: {error.strerror}"
            ) from error
        time_ns = 0
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                time_ns = _nanoseconds(value)
        return Frame(time_ns, self.host, self.interface, data)

    def _dropped_since(self) -> int:
        """The kernel's count of lost frames since the last call (packet(7))."""
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        dropped: int = struct.unpack("@II", statistics)[1]
        return dropped


class Delivery:
    """What a host's IP layer delivers to its sockets, after the LOCAL_IN hooks.

    Raw sockets see packets later than a capture does, which is how a drop in the target
    itself shows. IPv6 extension headers are not among what they see. The frames carry
    an empty Ethernet header, and ``SOCKET`` as their interface.
    """

    SOCKET = "socket"

    def __init__(self, host: Host, protocols: Iterable[tuple[int, int]]) -> None:
        """Listen for each (IP version, protocol number)."""
        self.host = host.name
        self._sockets: list[socket.socket] = []
        with ExitStack() as stack:
            for version, protocol in protocols:
                family = socket.AF_INET if version == 4 else socket.AF_INET6
                receiver = stack.enter_context(host.socket(family, socket.SOCK_RAW, protocol))
                receiver.setblocking(False)
                receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES // 2)
                receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                if version == 6:
                    for option in (
                        socket.IPV6_RECVPKTINFO,
                        socket.IPV6_RECVHOPLIMIT,
                        _FLOWINFO,
                    ):
                        receiver.setsockopt(socket.IPPROTO_IPV6, option, 1)
                self._sockets.append(receiver)
            stack.pop_all()

    def close(self) -> None:
        """Stop listening."""
        for receiver in self._sockets:
            receiver.close()

    def drain(self) -> list[Frame]:
        """Take what was delivered; raises TrafficError if any of it was lost."""
        frames = []
        for receiver in self._sockets:
            with suppress(BlockingIOError):
                while True:
                    frames.append(self._receive(receiver))
            counts = receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
            if struct.unpack("@9I", counts)[8]:
                raise TrafficError(
                    f"a socket of {self.host} lost packets, so nothing can be said",
                    cure="send fewer packets at a time",
                )
        return frames

    def _receive(self, receiver: socket.socket) -> Frame:
        data, ancillary, _, sender = receiver.recvmsg(_SNAPSHOT_BYTES, 256)
        values = {(level, kind): value for level, kind, value in ancillary}
        time_ns = _nanoseconds(values[socket.SOL_SOCKET, _SO_TIMESTAMPNS])
        if receiver.family == socket.AF_INET:
            return Frame(time_ns, self.host, self.SOCKET, bytes(12) + b"\x08\x00" + data)
        # Raw IPv6 sockets deliver no header; its fields come beside the data (ipv6(7)).
        flow = values.get((socket.IPPROTO_IPV6, _FLOWINFO), bytes(4))
        word = (6 << 28 | int.from_bytes(flow, "big") & 0x0FFFFFFF).to_bytes(4, "big")
        hop_limit = values[socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT][:1]
        rest = len(data).to_bytes(2, "big") + bytes([receiver.proto]) + hop_limit
        source = socket.inet_pton(socket.AF_INET6, sender[0].partition("%")[0])
        destination = values[socket.IPPROTO_IPV6, socket.IPV6_PKTINFO][:16]
        packet = word + rest + source + destination + data
        return Frame(time_ns, self.host, self.SOCKET, bytes(12) + b"\x86\xdd" + packet)


def save(
    path: str | os.PathLike[str],
    frames: Iterable[Frame],
    comments: Mapping[Frame, str] | None = None,
) -> None:
    """Write frames to ``path`` as pcapng, in order of time, with a comment on some.

    Each interface gets its own description, named host:interface, so one file follows a
    packet over all links.
    """
    comments = comments or {}
    ordered = sorted(frames, key=lambda frame: frame.time_ns)
    names = list(dict.fromkeys(f"{frame.host}:{frame.interface}" for frame in ordered))
    with open(path, "wb") as file:  # noqa: PTH123 - a path of any kind
        file.write(_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
        for name in names:
            # 1: Ethernet; option 2: name; option 9: times in 10^-9 s
            options = _options([(2, name.encode()), (9, b"\x09")])
            file.write(_block(1, struct.pack("<HHI", 1, 0, _SNAPSHOT_BYTES) + options))
        for frame in ordered:
            number = names.index(f"{frame.host}:{frame.interface}")
            file.write(_packet_block(frame, number, comments.get(frame)))


def _nanoseconds(timespec: bytes) -> int:
    seconds, nanoseconds = struct.unpack("@ll", timespec)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _packet_block(frame: Frame, interface_number: int, comment: str | None) -> bytes:
    high, low = divmod(frame.time_ns, 1 << 32)
    size = len(frame.data)
    options = _options([(1, comment.encode())]) if comment else b""
    header = struct.pack("<IIIII", interface_number, high, low, size, size)
    return _block(6, header + _padded(frame.data) + options)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _options(options: list[tuple[int, bytes]]) -> bytes:
    written = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join(written) + bytes(4)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
