"""A host of a topology: a network namespace and what runs inside it."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bridge.errors import TopologyError
from netns.namespace import DIRECTORY, entered
from netns.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from netns.plan import Interface, Version

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Host:
    """One host: its namespace, its interfaces, and ways to run things in it.

    ``name`` is the role ("client"), ``netns`` the namespace's name for ip-netns(8),
    ``path`` the file that tools open, ``inode`` the number that /proc/PID/ns/net and
    the kernel's own records show for it.
    """

    def __init__(
        self,
        name: str,
        netns: str,
        interfaces: tuple[Interface, ...],
        neighbours: dict[str, str] | None = None,
    ) -> None:
        """The topology makes hosts; ``neighbours`` maps static neighbours to their MACs."""
        self.name = name
        self.netns = netns
        self.path = DIRECTORY / netns
        self.inode = self.path.stat().st_ino
        self.interfaces = interfaces
        self._neighbours = neighbours or {}
        self._worker: Worker | None = None
        self._programs: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"Host({self.name!r}, netns={self.netns!r})"

    def address(self, version: Version = 4) -> str:
        """The host's first IPv4 or IPv6 address."""
        return self.interfaces[0].address(version)

    def index(self, interface: str) -> int:
        """The kernel's number of one of this host's interfaces (if_nametoindex(3))."""
        with self.entered():
            return socket.if_nametoindex(interface)

    def entered(self) -> AbstractContextManager[None]:
        """Let the calling thread work inside the host; see ``netns.namespace.entered``."""
        return entered(self.path)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """Open a socket that belongs to this host; the caller closes it."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside the host; ``options`` are those of subprocess.Popen.

        What still runs when the topology ends is killed. Raises TopologyError when the
        program cannot be started.
        """
        try:
            with self.entered():
                program = subprocess.Popen(command, **options)
        except OSError as error:
            raise TopologyError(
                f"cannot run {command[0]} in {self.name}: {error.strerror}",
                cure=f"install {command[0]} or give its path",
            ) from error
        self._programs = [one for one in self._programs if one.poll() is None]
        self._programs.append(program)
        return program

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: str = "",
        check: bool = False,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside the host, and return its status and output as text.

        Raises TopologyError when it cannot be started, when ``timeout_s`` seconds pass,
        and with ``check`` when its status is not 0.
        """
        pipe = subprocess.PIPE
        with self.popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise TopologyError(
                    f"{' '.join(command)} in {self.name} did not end within {timeout_s:g} s"
                ) from None
            finally:
                process.kill()  # does nothing once it has ended
        if check and process.returncode != 0:
            raise TopologyError(
                f"{' '.join(command)} in {self.name} failed "
                f"with status {process.returncode}: {stderr.strip()}"
            )
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def warm(self) -> None:
        """Start the worker process now, so that the first ``call`` finds it ready."""
        if self._worker is not None and not self._worker.is_alive:
            self._worker.close()
            self._worker = None
        if self._worker is None:
            self._worker = Worker(self.path, self._neighbours)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a Python function in the host's worker process, and return its result.

        The worker entered the namespace before it imported scapy, so scapy sees this
        host's interfaces and routes. Function, arguments and result must be picklable;
        the function's exception is raised here. ``call_within`` sets another limit than
        60 seconds.
        """
        return self.call_within(60.0, function, *args, **kwargs)

    def call_within(
        self, timeout_s: float, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Like ``call``; raises TopologyError after ``timeout_s`` seconds."""
        self.warm()
        assert self._worker is not None
        result: _T = self._worker.call(function, args, kwargs, timeout_s)
        return result

    def close(self) -> None:
        """End the worker process and the programs that still run. The topology does this."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        for program in self._programs:
            program.kill()
            program.wait()
            for stream in (program.stdin, program.stdout, program.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):  # input it never read
                        stream.close()
        self._programs.clear()
