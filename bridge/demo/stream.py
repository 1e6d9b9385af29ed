"""A stream of numbered DNS questions, and where in it each resume took effect.

Every question of the stream is one callback of the policy's hook, and the questions
leave in order on one CPU, so the n-th callback with a question's length is that of the
n-th question. The kernel's clock then says on which side of a resume each lies; the
capture at the server says, independently, what became of it.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import TrafficError
from bridge.events import Switch
from bridge.mix import ACCEPTED, DROPPED, VERSIONS

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from bridge.capture import Frame
    from bridge.tracer import Event
    from netns import Topology

_PORT = 53
_PAUSE_S = 0.001
_WAIT_S = 30.0
_HEADERS_BYTES = {4: 20 + 8, 6: 40 + 8}
_ETHERNET_BYTES = 14
_MOST = 0xFFFF


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the stream: what became of it, and what its callback said.

    ``time_ns`` is when its callback began, by the kernel's monotonic clock.
    """

    number: int
    time_ns: int
    verdict: str
    fate: str


class Stream:
    """Asks for ``name`` over IPv4 and IPv6 in turn, without end, while it is entered."""

    def __init__(self, topology: Topology, name: str) -> None:
        self._topology = topology
        self._body = _question_body(name)
        self._sockets: list[socket.socket] = []
        self._stopping = threading.Event()
        self._sent = threading.Condition()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self.sent = 0
        self.start_ns = 0

    def __enter__(self) -> Self:
        for version in VERSIONS:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            one = self._topology.client.socket(family, socket.SOCK_DGRAM)
            self._sockets.append(one)
            one.connect((self._topology.server.address(version), _PORT))
        self.ports = frozenset(one.getsockname()[1] for one in self._sockets)
        self.start_ns = time.monotonic_ns()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        for one in self._sockets:
            one.close()

    @property
    def lengths_bytes(self) -> frozenset[int]:
        """Lengths of the stream's packets, from the network header on."""
        size = 2 + len(self._body)
        return frozenset(header + size for header in _HEADERS_BYTES.values())

    def wait_for(self, more: int) -> None:
        """Return once ``more`` further questions have been sent.

        Raises TrafficError when they cannot be.
        """
        deadline = time.monotonic() + _WAIT_S
        with self._sent:
            wanted = self.sent + more
            while self.sent < wanted:
                if self._error is not None:
                    raise TrafficError(f"the stream broke: {self._error}") from self._error
                if not self._sent.wait(deadline - time.monotonic()):
                    raise TrafficError("the stream of questions does not flow")

    def _run(self) -> None:
        # The barrier that follows the stream uses the same CPU's queue.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        try:
            while not self._stopping.wait(_PAUSE_S) and self.sent < _MOST:
                self._ask(self.sent + 1)
        except OSError as error:
            self._error = error

    def _ask(self, number: int) -> None:
        message = number.to_bytes(2, "big") + self._body
        self._sockets[number % len(self._sockets)].send(message)
        with self._sent:
            self.sent = number
            self._sent.notify_all()


def _question_body(name: str) -> bytes:
    """A DNS question for A without its number (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    return b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00\x00\x01\x00\x01"


def arrived(frames: Sequence[Frame], ports: frozenset[int]) -> set[int]:
    """Return the numbers of the questions that reached the server."""
    numbers = set()
    for frame in frames:
        if frame.host == "server":
            number = _number(frame.data[_ETHERNET_BYTES:], ports)
            if number is not None:
                numbers.add(number)
    return numbers


def _number(packet: bytes, ports: frozenset[int]) -> int | None:
    offset = 40 if packet[0] >> 4 == 6 else (packet[0] & 0xF) * 4
    protocol = packet[6] if packet[0] >> 4 == 6 else packet[9]
    source = int.from_bytes(packet[offset : offset + 2], "big")
    if protocol != socket.IPPROTO_UDP or source not in ports:
        return None
    return int.from_bytes(packet[offset + 8 : offset + 10], "big")


def questions(sent: int, callbacks: Sequence[Event], delivered: set[int]) -> list[Question]:
    """Put together what is known of each question; callbacks are in order of time.

    Questions without a callback are left out.
    """
    names = {"accept": ACCEPTED, "drop": DROPPED}
    return [
        Question(
            number,
            callback.time_ns,
            names.get(callback.verdict, callback.verdict),
            ACCEPTED if number in delivered else DROPPED,
        )
        for number, callback in zip(range(1, sent + 1), callbacks, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class Resume:
    """A resume by the kernel's clock, from its beginning to its yield."""

    call: str
    begin_ns: int
    end_ns: int


def stretches(asked: Sequence[Question], resumes: Sequence[Resume]) -> list[list[Question]]:
    """Divide questions by the resumes: before the first, between, after the last."""
    edges = [(0, 0), *((one.begin_ns, one.end_ns) for one in resumes), (1 << 64, 1 << 64)]
    return [
        [one for one in asked if start[1] <= one.time_ns < end[0]]
        for start, end in itertools.pairwise(edges)
    ]


def switch(sent: int, asked: Sequence[Question], resume: Resume) -> Switch:
    """Say how cleanly a resume divides the stream."""
    before = [one for one in asked if one.time_ns < resume.begin_ns]
    after = [one for one in asked if one.time_ns >= resume.end_ns]
    return Switch(
        call=resume.call,
        last=before[-1].number if before else -1,
        first=after[0].number if after else -1,
        before_ns=resume.begin_ns - before[-1].time_ns if before else 0,
        after_ns=after[0].time_ns - resume.end_ns if after else 0,
        during=len(asked) - len(before) - len(after),
        untraced=sent - len(asked),
        misjudged=sum(one.verdict != one.fate for one in asked),
    )
