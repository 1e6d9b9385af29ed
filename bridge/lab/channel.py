"""The host's end of a virtio-serial port, and the commands that run over it.

The frame format is described, once, in guest/frames.py.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bridge.errors import LabError, LabTimeout
from bridge.lab.guest.frames import (
    CHUNK,
    LINE_LIMIT,
    WINDOW,
    Lines,
    decode,
    encode,
    pack,
    unpack,
)

Frame = tuple[str, list[bytes]]
_OUT_LIMIT = 1 << 20
_STALL_S = 20.0


class ChannelLostError(Exception):
    """The machine closed the port: it is gone."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the agent says of its guest; ``uptime_s`` is the guest's own clock."""

    release: str
    uptime_s: float
    key: str


class Deadline:
    """A moment in the future, or never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Return the seconds left, 0 when passed, None for never."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def passed(self) -> bool:
        """Return whether the moment has come."""
        return self.left_s() == 0.0


class Channel:
    """Frames over a connected socket; never blocks both ways at once."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lines = Lines()
        self._out = bytearray()
        self._frames: deque[Frame] = deque()

    def greet(self, deadline: Deadline, alive: Callable[[], None] = lambda: None) -> Greeting:
        """Open a session, dropping whatever an earlier one left on the line.

        ``alive`` is called now and then and may raise. Raises LabTimeout at the
        deadline and ChannelLostError where the machine is gone.
        """
        nonce = os.urandom(8).hex().encode()
        self._frames.clear()
        self._out += b"\n"
        self.send("HELLO", nonce, b"%d" % time.time_ns())
        while not deadline.passed():
            alive()
            self.pump(min(0.5, deadline.left_s() or 0.5))
            while self._frames:
                verb, fields = self._frames.popleft()
                if verb == "HELLO" and fields[:1] == [nonce] and len(fields) == 4:
                    release, uptime, key = (field.decode() for field in fields[1:])
                    return Greeting(release, float(uptime), key)
        raise LabTimeout("the guest does not answer")

    def send(self, verb: str, *fields: bytes) -> None:
        """Queue a frame; waits where very much is queued already.

        Raises LabTimeout where the guest stops taking data.
        """
        self._out += encode(verb, *fields)
        self._flush()
        while (queued := len(self._out)) > _OUT_LIMIT:
            self.pump(_STALL_S)
            if len(self._out) == queued:
                raise LabTimeout("the guest takes no more data")

    def receive(self, deadline: Deadline) -> Frame:
        """Return the next frame; raises LabTimeout at the deadline."""
        while not self._frames:
            if deadline.passed():
                raise LabTimeout("the guest did not answer in time")
            self.pump(deadline.left_s())
        return self._frames.popleft()

    def take(self) -> list[Frame]:
        """Return the frames that are here already."""
        frames = list(self._frames)
        self._frames.clear()
        return frames

    def pump(self, timeout_s: float | None, watch: Iterable[int] = ()) -> set[int]:
        """Send and receive what is possible within ``timeout_s``.

        Returns early once something happened; the result is the descriptors of
        ``watch`` that became readable.
        """
        poller = select.poll()
        want = select.POLLIN | (select.POLLOUT if self._out else 0)
        poller.register(self._sock, want)
        for fd in watch:
            poller.register(fd, select.POLLIN)
        ready = dict(poller.poll(None if timeout_s is None else max(1, timeout_s * 1000)))
        events = ready.pop(self._sock.fileno(), 0)
        if events & select.POLLOUT:
            self._flush()
        if events & ~select.POLLOUT:
            self._fill()
        return set(ready)

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelLostError from error
        del self._out[:sent]

    def _fill(self) -> None:
        try:
            data = self._sock.recv(LINE_LIMIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelLostError from error
        if not data:
            raise ChannelLostError
        for line in self._lines.feed(data):
            try:
                self._frames.append(decode(line))
            except ValueError:
                continue  # left over from the port's earlier user; see greet()


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended; a negative ``returncode`` is the signal it died of."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Spec:
    """A command for the guest; ``terminal`` is (rows, columns) or None for pipes."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = "/"
    terminal: tuple[int, int] | None = None


class Session:
    """A command running in the guest.

    Read its output with ``lines()`` or ``pump()``; as a context manager it kills
    what still runs at the end.
    """

    def __init__(
        self,
        channel: Channel,
        spec: Spec,
        *,
        lost: Callable[[], Exception],
        release: Callable[[], None],
    ) -> None:
        self.argv = spec.argv
        self.returncode: int | None = None
        self.stderr = bytearray()
        self.on_stdout: Callable[[bytes], None] | None = None
        self.on_stderr: Callable[[bytes], None] | None = self.stderr.extend
        self._channel = channel
        self._lost = lost
        self._release: Callable[[], None] | None = release
        self._inbox = bytearray()
        self._eof = False
        self._under_way = 0
        environment = [f"{name}={value}" for name, value in spec.env.items()]
        terminal = b"%d %d" % spec.terminal if spec.terminal else b""
        fields = (pack(list(spec.argv)), pack(environment), os.fsencode(spec.cwd), terminal)
        self._send("EXEC", *fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Queue data for the command's standard input."""
        self._inbox += data
        self._feed()

    @property
    def backlog_bytes(self) -> int:
        """Bytes of standard input that wait here for the command to read."""
        return len(self._inbox)

    def close_stdin(self) -> None:
        """Let the command see the end of its standard input."""
        self._eof = True
        self._feed()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._send("SIGNAL", b"%d" % number)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its new size."""
        self._send("WINCH", b"%d" % rows, b"%d" % cols)

    def kill(self) -> None:
        """Kill the command's process group at once."""
        if self.returncode is None:
            self.signal(signal.SIGKILL)

    def pump(self, timeout_s: float | None, watch: Iterable[int] = ()) -> set[int]:
        """Handle what the command says within ``timeout_s``.

        Returns the descriptors of ``watch`` that became readable. Raises
        GuestCrashed where the machine is gone.
        """
        try:
            ready = self._channel.pump(timeout_s, watch)
        except ChannelLostError:
            raise self._lost() from None
        for verb, fields in self._channel.take():
            self._handle(verb, fields)
        return ready

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the command's end and return its status.

        Raises LabTimeout at the deadline, after having the command terminated,
        and GuestCrashed where the machine dies meanwhile.
        """
        deadline = Deadline(timeout_s)
        while self.returncode is None:
            if deadline.passed():
                raise self.timed_out(timeout_s or 0)
            self.pump(deadline.left_s())
        return self.returncode

    def lines(self, timeout_s: float | None = None) -> Iterator[str]:
        """Yield standard output line by line, until the command ends.

        ``timeout_s`` bounds the command, not one line.
        """
        pieces, deadline = Lines(), Deadline(timeout_s)
        ready: deque[bytes] = deque()
        tail = bytearray()

        def receive(data: bytes) -> None:
            ready.extend(pieces.feed(data))
            tail.extend(data)
            del tail[: tail.rfind(b"\n") + 1]

        self.on_stdout = receive
        while self.returncode is None or ready:
            if not ready:
                if deadline.passed():
                    raise self.timed_out(timeout_s or 0)
                self.pump(deadline.left_s())
            while ready:
                yield ready.popleft().decode(errors="replace")
        if tail:
            yield tail.decode(errors="replace")

    def close(self) -> None:
        """Kill the command where it still runs, and give the port back."""
        if self._release is None:
            return
        release, self._release = self._release, None
        with suppress(LabError):  # then the machine is gone, and with it the command
            self.kill()
        release()

    def timed_out(self, timeout_s: float) -> LabTimeout:
        """Have the command ended; tell a slow command from a dead guest."""
        command = " ".join(self.argv)
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.signal(number)
            grace = Deadline(1.0)
            while self.returncode is None and not grace.passed():
                self.pump(grace.left_s())
            if self.returncode is not None:
                return LabTimeout(f"{command}: no end within {timeout_s:g} s; terminated")
        return LabTimeout(f"{command}: no end within {timeout_s:g} s, and the guest hangs")

    def _send(self, verb: str, *fields: bytes) -> None:
        try:
            self._channel.send(verb, *fields)
        except ChannelLostError:
            raise self._lost() from None

    def _feed(self) -> None:
        while self._inbox and self._under_way < WINDOW:
            data = bytes(self._inbox[:CHUNK])
            del self._inbox[: len(data)]
            self._under_way += len(data)
            self._send("STDIN", data)
        if self._eof and not self._inbox:
            self._eof = False
            self._send("EOF")

    def _handle(self, verb: str, fields: Sequence[bytes]) -> None:
        match verb, fields:
            case "STDOUT", [data]:
                if self.on_stdout:
                    self.on_stdout(data)
            case "STDERR", [data]:
                if self.on_stderr:
                    self.on_stderr(data)
            case "TAKEN", [size]:
                self._under_way -= int(size)
                self._feed()
            case "EXIT", [status]:
                self.returncode = int(status)
            case _:
                raise LabError(f"the guest's agent sent nonsense: {verb}")


def put_file(channel: Channel, local: Path, path: str, mode: int, deadline: Deadline) -> None:
    """Send a file to ``path`` in the guest; raises LabError where it is refused."""
    with local.open("rb") as file:
        channel.send("PUT", os.fsencode(path), b"%o" % mode)
        while data := file.read(CHUNK):
            channel.send("DATA", data)
    channel.send("END")
    expect_ok(channel, deadline)


def get_file(channel: Channel, path: str, deadline: Deadline) -> bytes:
    """Return a guest's file; raises LabError where it cannot be read."""
    channel.send("GET", os.fsencode(path))
    content = bytearray()
    while True:
        verb, fields = channel.receive(deadline)
        if verb != "DATA":
            check_reply(verb, fields)
            return bytes(content)
        content += fields[0]


def have_tree(channel: Channel, directory: str, deadline: Deadline) -> dict[str, str]:
    """Begin a transfer of a tree; return what the guest has of it."""
    channel.send("TREE", os.fsencode(directory))
    verb, fields = channel.receive(deadline)
    if verb != "HAVE":
        check_reply(verb, fields)
    items = unpack(fields[0])
    return dict(zip(items[::2], items[1::2], strict=True))


def expect_ok(channel: Channel, deadline: Deadline) -> None:
    """Wait for the end of a transfer; raises LabError where it failed."""
    check_reply(*channel.receive(deadline))


def check_reply(verb: str, fields: Sequence[bytes]) -> None:
    """Raise LabError unless the reply is OK."""
    if verb == "FAIL" and fields:
        raise LabError(f"in the guest: {fields[0].decode()}")
    if verb != "OK":
        raise LabError(f"the guest's agent sent nonsense: {verb}")
