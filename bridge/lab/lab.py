"""A lab: a running machine, the commands and files that go there and back.

    with Lab.attach_or_boot() as lab:
        done = lab.run(["uname", "-r"])

A lab comes from `Lab.boot` (its own machine, ends with it), from `Lab.attach` (one
that `lunabridge lab up` keeps running) or from whichever there is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from bridge.errors import LabError, LabTimeout
from bridge.lab import tree
from bridge.lab.carrier import Attached, Carrier, OneShot
from bridge.lab.channel import (
    Channel,
    ChannelLostError,
    Completed,
    Deadline,
    Session,
    Spec,
    get_file,
    put_file,
)
from bridge.lab.machine import Options
from bridge.lab.progress import Progress, to_stderr
from bridge.lab.running import Facts

DEFAULT_NAME = "default"
TRANSFER_S = 60.0
_ANSWER_S = 15.0


class Lab:
    """A running lab; close it, or use it as a context manager.

    Several commands may run at once, from several threads too.
    """

    def __init__(self, carrier: Carrier, project: Path | None = None) -> None:
        self._carrier = carrier
        self._project = project or tree.project_root()

    @classmethod
    def boot(
        cls,
        options: Options | None = None,
        *,
        project: Path | None = None,
        progress: Progress = to_stderr,
    ) -> Self:
        """Boot a lab of one's own, which ends when it is closed.

        Call it from the main thread: then not even kill -9 leaves the machine
        behind at any moment. Raises EnvironmentLacking, LabTimeout where a stage
        of the boot passes its deadline, GuestCrashed where the boot ends early.
        """
        return cls(OneShot(options or Options(), progress), project)

    @classmethod
    def attach(cls, name: str = DEFAULT_NAME, *, project: Path | None = None) -> Self:
        """Use the lab that `lunabridge lab up` started; raises LabError where none runs."""
        return cls(Attached(name), project)

    @classmethod
    def attach_or_boot(
        cls,
        name: str = DEFAULT_NAME,
        options: Options | None = None,
        *,
        project: Path | None = None,
        progress: Progress = to_stderr,
    ) -> Self:
        """Use the running lab ``name``, or boot one.

        Options that are given are asked of a lab of one's own, so they boot one.
        """
        if options is None and Attached.is_running(name):
            return cls.attach(name, project=project)
        return cls.boot(options, project=project, progress=progress)

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
        """End a machine of one's own; leave one that was attached to."""
        self._carrier.close()

    @property
    def facts(self) -> Facts:
        """Acceleration, kernel release and boot time of this lab."""
        return self._carrier.facts

    @property
    def acceleration(self) -> str:
        """``kvm``, ``tcg`` or ``icount``."""
        return self.facts.acceleration

    @property
    def kernel_release(self) -> str:
        """The guest's `uname -r`."""
        return self.facts.release

    @property
    def boot_s(self) -> float:
        """Seconds from starting the machine to its agent's first answer."""
        return self.facts.boot_s

    def console_tail(self, lines: int = 40) -> str:
        """Return the last lines of the guest's console."""
        return self._carrier.console.tail(lines)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = tree.PROJECT,
        stdin: bytes | None = None,
        timeout_s: float | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
        check: bool = False,
    ) -> Completed:
        """Run a command in the guest and wait for its end.

        What ``on_stdout`` and ``on_stderr`` are called with is not collected.
        Raises LabTimeout after ``timeout_s`` seconds (the command is terminated),
        GuestCrashed where the guest dies, and with ``check`` LabError where the
        command fails.
        """
        stdout = bytearray()
        with self.popen(argv, env=env, cwd=cwd) as session:
            session.on_stdout = on_stdout or stdout.extend
            if on_stderr:
                session.on_stderr = on_stderr
            session.write(stdin or b"")
            session.close_stdin()
            status = session.wait(timeout_s)
        done = Completed(tuple(argv), status, bytes(stdout), bytes(session.stderr))
        if check and status != 0:
            raise LabError(_failure(done))
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = tree.PROJECT,
        terminal: tuple[int, int] | None = None,
    ) -> Session:
        """Start a command in the guest, with the project tree up to date there.

        ``terminal`` is (rows, columns) for a command that needs one.
        """
        sock = self._carrier.acquire()
        try:
            channel = self._open(sock)
            with self._translated():
                self._mirror(channel, self._project, tree.PROJECT, tree.scan(self._project))
            return Session(
                channel,
                Spec(tuple(argv), env or {}, cwd, terminal),
                lost=self._carrier.crashed,
                release=lambda: self._carrier.release(sock),
            )
        except BaseException:
            self._carrier.release(sock)
            raise

    def put(self, local: Path, path: str, *, mode: int | None = None) -> None:
        """Copy a file into the guest; ``mode`` is the local one unless given."""
        with self._channel() as channel:
            bits = local.stat().st_mode & 0o7777 if mode is None else mode
            put_file(channel, local, path, bits, Deadline(TRANSFER_S))

    def get(self, path: str) -> bytes:
        """Return the content of a file in the guest."""
        with self._channel() as channel:
            return get_file(channel, path, Deadline(TRANSFER_S))

    def synchronise(
        self, local: Path, directory: str, paths: Iterable[str] | None = None
    ) -> int:
        """Mirror a directory to a read-only one in the guest; return the files sent.

        ``paths`` are the files below it that are wanted, all of them unless given.
        """
        want = tree.scan(local) if paths is None else tree.describe(local, paths)
        with self._channel() as channel:
            return self._mirror(channel, local, directory, want)

    def ping(self, timeout_s: float = _ANSWER_S) -> None:
        """See whether the guest answers; raises LabTimeout or GuestCrashed."""
        sock = self._carrier.acquire()
        try:
            self._open(sock, timeout_s)
        finally:
            self._carrier.release(sock)

    def _mirror(
        self, channel: Channel, local: Path, directory: str, want: Mapping[str, str]
    ) -> int:
        return tree.synchronise(channel, local, directory, want, Deadline(TRANSFER_S))

    @contextmanager
    def _channel(self) -> Iterator[Channel]:
        sock = self._carrier.acquire()
        try:
            channel = self._open(sock)
            with self._translated():
                yield channel
        finally:
            self._carrier.release(sock)

    def _open(self, sock: socket.socket, timeout_s: float = _ANSWER_S) -> Channel:
        channel = Channel(sock)
        with self._translated():
            try:
                channel.greet(Deadline(timeout_s))
            except LabTimeout:
                raise LabTimeout(
                    "the guest does not answer any more", cure=self._carrier.cure
                ) from None
        return channel

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the loss of the channel into what it means."""
        try:
            yield
        except ChannelLostError:
            raise self._carrier.crashed() from None


def _failure(done: Completed) -> str:
    how = f"status {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    output = (done.stderr or done.stdout).decode(errors="replace").rstrip()
    return f"{' '.join(done.argv)} ended with {how} in the guest\n{output[-2000:]}".rstrip()
