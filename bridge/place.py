"""Where a verb's work is done: in the lab, or on this machine's own kernel.

    with open_place(native=False, progress=progress) as place:
        for event in place.work("bridge.demo", {}, timeout_s=300):
            show(event)

The guest half runs there as a process of its own and tells what happens, event by
event. Ctrl-C interrupts it, once, so that it takes down what it built; what it still
has to say is delivered too. A second Ctrl-C kills it. In a lab that ends anyway the
first one does, unless the work is to be finished.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bridge import errors
from bridge.errors import BridgeError, EnvironmentLacking, LabTimeout, LuaError
from bridge.events import Event, Failure, Stage, from_json
from bridge.parts import PROJECT

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bridge.lab import Lab, Session

Progress = Callable[[str], None]

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
DEFAULT_LAB = "default"
"""The name of the lab that `lunabridge lab up` keeps."""

INTERRUPTED = 130
"""The exit status of what Ctrl-C ended."""

_GRACE_S = 60.0
_SLICE_S = 0.5
_COMMAND_S = 60.0
_COMPLAINT_BYTES = 4000


class Place(Protocol):
    """A kernel that guest halves can be run in."""

    where: str
    stages: Sequence[Stage]
    interrupted: bool

    def work(
        self,
        module: str,
        job: Mapping[str, Any],
        timeout_s: float | None,
        *,
        finish: bool = False,
    ) -> Iterator[Event]:
        """Run a guest half and yield its events; with ``finish`` after Ctrl-C too.

        Raises the error it ended with, LabTimeout, GuestCrashed.
        """

    def converse(self, module: str) -> AbstractContextManager[Conversation]:
        """Run a guest half that answers what it is asked, until the block ends."""


@contextmanager
def open_place(
    *, native: bool, progress: Progress, lab_name: str = DEFAULT_LAB
) -> Iterator[Place]:
    """Open the lab of that name if it is up, or one that ends with the block.

    With ``native`` it is this machine instead, with its own module. Raises
    EnvironmentLacking, LabError, ModuleError.
    """
    if native:
        yield NativePlace(progress)
        return
    from bridge.lab import Lab  # noqa: PLC0415 (only where it is needed)
    from bridge.lab.carrier import Attached  # noqa: PLC0415

    start = time.monotonic()
    reused = Attached.is_running(lab_name)
    build = _Build(progress)
    try:
        lab = Lab.attach_or_boot(lab_name, progress=progress)
    finally:
        build.join()
    with lab:
        yield LabPlace(lab, build, start, progress, reused=reused)


def command_in_lab(
    lab_name: str,
    argv: Sequence[str],
    *,
    timeout_s: float | None = _COMMAND_S,
    on_stdout: Callable[[bytes], None] | None = None,
) -> tuple[int, bytes, bytes]:
    """Run `lunabridge` in a lab that is up; return its status, standard output and error.

    What ``on_stdout`` is called with is not returned. Raises EnvironmentLacking where
    no lab of that name is up.
    """
    from bridge.lab import Lab  # noqa: PLC0415 (only where it is needed)
    from bridge.lab.carrier import Attached  # noqa: PLC0415

    if not Attached.is_running(lab_name):
        named = "" if lab_name == DEFAULT_LAB else f" --name {lab_name}"
        raise EnvironmentLacking(
            f"no lab {lab_name!r} is up", cure=f"start it with: lunabridge lab up{named}"
        )
    with Lab.attach(lab_name) as lab:
        done = lab.run(
            ["python3", "-m", "bridge.cli", *argv], timeout_s=timeout_s, on_stdout=on_stdout
        )
    return done.returncode, done.stdout, done.stderr


class Conversation:
    """A guest half that answers each line of its input with a line, both JSON objects."""

    def __init__(self, half: _Half) -> None:
        self._half = half
        self._rest = b""

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Ctrl-C interrupts what the other side does for it; a second one raises
        KeyboardInterrupt. Raises the error the other side ended with, GuestCrashed.
        """
        from bridge.lab.passthrough import caught_signals  # noqa: PLC0415 (only where needed)

        self._half.write(json.dumps(request).encode() + b"\n")
        with caught_signals(*_INTERRUPTS) as signals:
            interrupted = False
            while (line := self._line()) is None:
                if self._half.pump(_SLICE_S, signals):
                    if signal.SIGTERM in os.read(signals, 64) or interrupted:
                        raise KeyboardInterrupt
                    interrupted = True
                    self._half.signal(signal.SIGINT)
        answer: dict[str, Any] = json.loads(line)
        if answer.get("event") == "failure":
            failed = from_json(answer)
            assert isinstance(failed, Failure)
            raise _error(failed)
        return answer

    def _line(self) -> bytes | None:
        ended = self._half.status() is not None
        self._rest += self._half.take()
        line, end, rest = self._rest.partition(b"\n")
        if end:
            self._rest = rest
            return line
        if ended:
            complaint = self._half.complaint()[-_COMPLAINT_BYTES:]
            raise BridgeError(f"it ended with status {self._half.status()}\n{complaint}")
        return None

    def close(self) -> None:
        """Let the other side end, which is when it has taken down what it built."""
        self._half.end_input()
        end = time.monotonic() + _GRACE_S
        while self._half.status() is None and time.monotonic() < end:
            self._half.pump(_SLICE_S, None)
            self._half.take()


class _Build:
    """Building the module for the lab's kernel, while the lab boots."""

    def __init__(self, progress: Progress) -> None:
        from bridge.lab import image  # noqa: PLC0415 (only where it is needed)

        self._image = image.ensure(progress=progress)
        self._progress = progress
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="module-build")
        self._thread.start()

    def _run(self) -> None:
        from bridge import module  # noqa: PLC0415 (only where it is needed)

        try:
            module.build(module.Kernel.of_image(self._image), self._progress)
        except BaseException as error:  # noqa: BLE001 (raised again by check)
            self._error = error

    def join(self) -> None:
        """Wait for the end of the build."""
        self._thread.join()

    def check(self) -> None:
        """Raise what the build raised."""
        if self._error is not None:
            raise self._error


class LabPlace:
    """A lab, with the module in it."""

    def __init__(
        self, lab: Lab, build: _Build, start: float, progress: Progress, *, reused: bool
    ) -> None:
        from bridge import module  # noqa: PLC0415 (only where it is needed)

        self._lab = lab
        self._reused = reused
        self.interrupted = False
        how = "the running lab" if reused else "a lab of its own"
        self.where = f"{how}, Linux {lab.kernel_release}, {lab.acceleration}"
        booted = time.monotonic()
        build.check()
        module.install(lab, progress)
        self._ready_s = time.monotonic() - start
        self.stages: Sequence[Stage] = (
            Stage("boot the lab", 0.0, round(booted - start, 3)),
            Stage("install the module", round(booted - start, 3), round(self._ready_s, 3)),
        )

    def work(
        self,
        module: str,
        job: Mapping[str, Any],
        timeout_s: float | None,
        *,
        finish: bool = False,
    ) -> Iterator[Event]:
        """Run a guest half in the lab; see Place."""
        with self._lab.popen(["python3", "-m", module]) as session:
            session.write(json.dumps(job).encode())
            session.close_stdin()
            gentle = self._reused or finish
            yield from _events(_LabHalf(session), self, timeout_s, gentle=gentle)

    @contextmanager
    def converse(self, module: str) -> Iterator[Conversation]:
        """Run a guest half in the lab that answers; see Place."""
        with self._lab.popen(["python3", "-m", module]) as session:
            half = _LabHalf(session)
            half.write(b"{}\n")
            with closing(Conversation(half)) as conversation:
                yield conversation


class NativePlace:
    """The kernel of this machine; needs root, and a module built for it."""

    def __init__(self, progress: Progress) -> None:
        self.interrupted = False
        self.where = f"this machine's own kernel, Linux {os.uname().release}"
        start = time.monotonic()
        if os.geteuid() != 0:
            raise EnvironmentLacking(
                "loading a kernel module needs root",
                cure="run it as root, or leave out --native to use the lab",
            )
        self._module = self._find_module(progress)
        self.stages: Sequence[Stage] = (
            Stage("find the module", 0.0, round(time.monotonic() - start, 3)),
        )

    @staticmethod
    def _find_module(progress: Progress) -> Path | None:
        """Return the module to load, None where it is loaded or in its usual place."""
        from bridge.lunatik import GUEST_MODULE  # noqa: PLC0415 (slow to import)

        if Path("/sys/module/lunatik").exists() or GUEST_MODULE.exists():
            return None
        from bridge import module  # noqa: PLC0415 (only where it is needed)

        return module.build(module.Kernel.running(), progress) / "lunatik.ko"

    def work(
        self,
        module: str,
        job: Mapping[str, Any],
        timeout_s: float | None,
        *,
        finish: bool = False,
    ) -> Iterator[Event]:
        """Run a guest half here; see Place."""
        with self._started(module) as half:
            half.write(json.dumps({**job, **self._job()}).encode())
            half.end_input()
            yield from _events(half, self, timeout_s)

    @contextmanager
    def converse(self, module: str) -> Iterator[Conversation]:
        """Run a guest half here that answers; see Place."""
        with self._started(module) as half:
            half.write(json.dumps(self._job()).encode() + b"\n")
            with closing(Conversation(half)) as conversation:
                yield conversation

    def _job(self) -> dict[str, str | None]:
        return {"module": str(self._module) if self._module else None}

    @staticmethod
    @contextmanager
    def _started(module: str) -> Iterator[_NativeHalf]:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-m", module]
        # Its own session: a terminal's Ctrl-C must not reach it twice.
        with subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=PROJECT, start_new_session=True
        ) as process:
            try:
                yield _NativeHalf(process)
            finally:
                process.kill()


class _Half(Protocol):
    """A guest half that runs."""

    def write(self, data: bytes) -> None:
        """Give it input."""

    def end_input(self) -> None:
        """Let it see the end of its input."""

    def pump(self, timeout_s: float, watch: int | None) -> bool:
        """Wait for output; return whether ``watch``, if any, became readable."""

    def take(self) -> bytes:
        """Return the output since the last call."""

    def signal(self, number: int) -> None:
        """Send it a signal."""

    def status(self) -> int | None:
        """Return its exit status once it has ended and said everything."""

    def complaint(self) -> str:
        """Return what it wrote to standard error."""


class _LabHalf:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._out = bytearray()
        session.on_stdout = self._out.extend

    def write(self, data: bytes) -> None:
        self._session.write(data)

    def end_input(self) -> None:
        self._session.close_stdin()

    def pump(self, timeout_s: float, watch: int | None) -> bool:
        return watch in self._session.pump(timeout_s, [] if watch is None else [watch])

    def take(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data

    def signal(self, number: int) -> None:
        self._session.signal(number)

    def status(self) -> int | None:
        return self._session.returncode

    def complaint(self) -> str:
        return self._session.stderr.decode(errors="replace")


class _NativeHalf:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._buffers = {
            process.stdout.fileno(): bytearray(),
            process.stderr.fileno(): bytearray(),
        }
        self._out, self._err = self._buffers.values()
        self._open = set(self._buffers)

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and its status says why
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def end_input(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def pump(self, timeout_s: float, watch: int | None) -> bool:
        watched = [] if watch is None else [watch]
        ready, _, _ = select.select([*watched, *self._open], [], [], timeout_s)
        for descriptor in self._open & set(ready):
            data = os.read(descriptor, 1 << 16)
            self._buffers[descriptor] += data
            if not data:
                self._open.discard(descriptor)
        return watch in ready

    def take(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def status(self) -> int | None:
        return None if self._open else self._process.wait()

    def complaint(self) -> str:
        return self._err.decode(errors="replace")


def _events(
    half: _Half, place: Place, timeout_s: float | None, *, gentle: bool = True
) -> Iterator[Event]:
    """Yield the events of a guest half until it ends; raise what it failed with."""
    from bridge.lab.passthrough import caught_signals  # noqa: PLC0415 (only where needed)

    failed: Failure | None = None
    with caught_signals(*_INTERRUPTS) as signals:
        for line in _lines(half, place, signals, timeout_s, gentle=gentle):
            event = _parsed(line)
            if isinstance(event, Failure):
                failed = event
            else:
                yield event
    if failed is not None:
        raise _error(failed)
    if half.status() and not place.interrupted:
        complaint = half.complaint()[-_COMPLAINT_BYTES:]
        raise BridgeError(f"the work ended with status {half.status()}\n{complaint}")


def _parsed(line: bytes) -> Event:
    try:
        return from_json(json.loads(line))
    except ValueError as error:
        text = line.decode(errors="replace")
        raise BridgeError(f"the guest half said what nobody understands: {text}") from error


def _lines(
    half: _Half, place: Place, signals: int, timeout_s: float | None, *, gentle: bool
) -> Iterator[bytes]:
    end = None if timeout_s is None else time.monotonic() + timeout_s
    rest = b""
    while True:
        ended = half.status() is not None
        *lines, rest = (rest + half.take()).split(b"\n")
        yield from lines
        if ended and not lines:
            return
        if not ended and half.pump(_SLICE_S, signals):
            os.read(signals, 64)
            fatal = place.interrupted or not gentle
            half.signal(signal.SIGKILL if fatal else signal.SIGINT)
            place.interrupted = True
            end = min(end or sys.float_info.max, time.monotonic() + _GRACE_S)
        if end is not None and time.monotonic() > end:
            _end(half, signals)
            raise LabTimeout("the work did not end in time; it was terminated")


def _end(half: _Half, signals: int) -> None:
    """Interrupt a half, so that it takes down what it built; kill it if it does not."""
    for number in (signal.SIGINT, signal.SIGKILL):
        half.signal(number)
        end = time.monotonic() + _GRACE_S
        while half.status() is None and time.monotonic() < end:
            half.pump(_SLICE_S, signals)
            half.take()


def _error(failed: Failure) -> BridgeError:
    """Make the error again that the guest half ended with."""
    kind = getattr(errors, failed.name, BridgeError)
    if kind is LuaError:
        return LuaError(failed.message, traceback=failed.traceback)
    try:
        error: BridgeError = kind(failed.message, cure=failed.cure)
    except TypeError:
        error = BridgeError(failed.message, cure=failed.cure)
    return error
