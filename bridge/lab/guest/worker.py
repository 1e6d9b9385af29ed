"""One host on one port: commands run, files kept, until it hangs up."""

import os
import select
import time
from collections.abc import Callable, Iterator

from .command import GRACE_S, Command
from .files import Put, Task, Tree
from .frames import CHUNK, Lines, decode, encode, unpack

CLOCK_OFF_NS = 1_000_000_000  # a clock further off than this is set
OUT_LIMIT = 1 << 19  # bytes queued for the host before their source has to wait
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LUNABRIDGE_IN_LAB": "1",
    "PATH": "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/project",
    "USER": "root",
}


class HungUpError(Exception):
    """The host closed its end of the port."""


class Worker:
    """Serves one host; at any time it runs a command, takes files or sends one."""

    def __init__(self, port: int, key: str, *, own_clock: bool = False) -> None:
        self._port = port
        self._own_clock = own_clock
        self._key = key
        self._lines = Lines()
        self._out = bytearray()
        self._command: Command | None = None
        self._task: Task | None = None
        self._source: Iterator[None] | None = None
        self._handlers: dict[str, Callable[..., None]] = {
            "EXEC": self._execute,
            "STDIN": self._take_stdin,
            "EOF": self._take_eof,
            "SIGNAL": self._take_signal,
            "WINCH": self._take_winch,
            "GET": self._get,
            "PUT": self._put,
            "TREE": self._tree,
        }

    def run(self) -> None:
        """Serve; returns when the host is gone."""
        try:
            while True:
                self._turn()
        except HungUpError:
            pass
        finally:
            self._drop()

    def _turn(self) -> None:
        """Wait for whatever comes next, and handle it."""
        ready = self._wait()
        if self._port in ready:
            self._handle_port(ready[self._port])
        if self._source and len(self._out) < OUT_LIMIT and next(self._source, self) is self:
            self._source = None
        if self._command:
            self._attend(self._command, ready)

    def _wait(self) -> dict[int, int]:
        """Poll everything that matters now; return the events of each descriptor."""
        poller = select.poll()
        poller.register(self._port, select.POLLIN | (select.POLLOUT if self._out else 0))
        room = len(self._out) < OUT_LIMIT
        timeout_ms = 0 if self._source and room else None
        if self._command:
            for fd, events in self._command.interest(room).items():
                poller.register(fd, events)
            if self._command.status is not None:
                timeout_ms = int(GRACE_S * 1000) + 1
        return dict(poller.poll(timeout_ms))

    def _handle_port(self, events: int) -> None:
        if events & select.POLLHUP:
            raise HungUpError
        if events & select.POLLOUT:
            self._flush()
        if events & select.POLLIN:
            try:
                data = os.read(self._port, 65536)
            except BlockingIOError:
                return
            if not data:
                raise HungUpError
            for line in self._lines.feed(data):
                self._handle_line(line)

    def _flush(self) -> None:
        try:
            size = os.write(self._port, self._out[:CHUNK])
        except BlockingIOError:
            return
        except OSError as error:
            raise HungUpError from error
        del self._out[:size]

    def _send(self, verb: str, *fields: bytes) -> None:
        self._out += encode(verb, *fields)

    def _drop(self) -> None:
        """Forget whatever the host's session was doing."""
        self._source = None
        if self._task:
            self._task.close()
            self._task = None
        if self._command:
            self._command.kill()
            self._command = None

    def _handle_line(self, line: bytes) -> None:
        try:
            verb, fields = decode(line)
        except ValueError:
            return  # the torn frame of a client that died
        if verb == "HELLO" and len(fields) == 2:
            self._greet(*fields)
        elif self._task:
            self._work(self._task, verb, fields)
        elif handler := self._handlers.get(verb):
            handler(*fields)

    def _greet(self, nonce: bytes, time_ns: bytes) -> None:
        self._drop()
        if self._own_clock and abs(time.time_ns() - int(time_ns)) > CLOCK_OFF_NS:
            # This guest was saved a while ago and has just come back.
            time.clock_settime_ns(time.CLOCK_REALTIME, int(time_ns))
        self._out = bytearray(b"\n")  # ends the line an earlier session left torn
        facts = [os.uname().release, str(time.monotonic()), self._key]
        self._send("HELLO", nonce, *(fact.encode() for fact in facts))

    def _work(self, task: Task, verb: str, fields: list[bytes]) -> None:
        """Go on with the transfer under way, and report at its end."""
        if task.step(verb, fields):
            self._task = None
            task.close()
            if task.failure:
                self._send("FAIL", task.failure.encode())
            else:
                self._send("OK")

    def _attend(self, command: Command, ready: dict[int, int]) -> None:
        """Move what the command reads and writes; notice its end."""
        if command.stdin in ready and command.inbox:
            self._feed_input(command)
        for fd in [fd for fd in command.outputs if fd in ready]:
            verb = command.outputs[fd]
            if data := command.read_output(fd):
                self._send(verb, data)
        if command.status is None and command.pidfd in ready:
            command.reap()
        if command.status is not None and command.drained():
            self._command = None
            command.close()
            self._send("EXIT", b"%d" % command.status)

    def _feed_input(self, command: Command) -> None:
        if size := command.take_input():
            self._send("TAKEN", b"%d" % size)
        if command.eof and not command.inbox:
            command.close_input()

    def _execute(self, argv: bytes, env: bytes, cwd: bytes, terminal: bytes) -> None:
        if self._command:
            self._command.kill()
        changes = dict(item.split("=", 1) for item in unpack(env))
        environment = {**ENVIRONMENT, **changes}
        self._command = Command(unpack(argv), environment, os.fsdecode(cwd), terminal)

    def _take_stdin(self, data: bytes) -> None:
        command = self._command
        if command and command.stdin >= 0 and command.status is None:
            command.inbox += data
        else:
            self._send("TAKEN", b"%d" % len(data))

    def _take_eof(self) -> None:
        if self._command:
            self._command.eof = True
            if not self._command.inbox:
                self._command.close_input()

    def _take_signal(self, number: bytes) -> None:
        if self._command:
            self._command.signal(int(number))

    def _take_winch(self, rows: bytes, cols: bytes) -> None:
        if self._command:
            self._command.resize(int(rows), int(cols))

    def _get(self, path: bytes) -> None:
        self._source = self._read_file(os.fsdecode(path))

    def _read_file(self, path: str) -> Iterator[None]:
        try:
            with open(path, "rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    self._send("DATA", data)
                    yield
        except OSError as error:
            self._send("FAIL", f"{path}: {error.strerror}".encode())
        else:
            self._send("OK")

    def _put(self, path: bytes, mode: bytes) -> None:
        self._task = Put(os.fsdecode(path), int(mode, 8))

    def _tree(self, directory: bytes) -> None:
        tree = Tree(os.fsdecode(directory))
        if tree.failure:
            self._send("FAIL", tree.failure.encode())
            tree.close()
        else:
            self._task = tree
            self._send("HAVE", tree.manifest())
