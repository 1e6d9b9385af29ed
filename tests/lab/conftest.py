"""The lab's own tests: an agent on a socket pair, a machine, the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.lab import Lab
from bridge.lab.channel import Channel, Deadline, Session, Spec
from bridge.lab.progress import silent

ROOT = Path(__file__).resolve().parents[2]
_WORKER = (
    "import sys; from bridge.lab.guest.worker import Worker;"
    " Worker(int(sys.argv[1]), 'key').run()"
)


@dataclass
class Agent:
    """The guest's agent serving one port, here a socket pair, without any guest."""

    process: subprocess.Popen[bytes]
    sock: socket.socket

    def channel(self) -> Channel:
        """A greeted channel, as each session starts with one."""
        channel = Channel(self.sock)
        channel.greet(Deadline(10))
        return channel

    def start(self, *argv: str, cwd: str = "/") -> Session:
        def lost() -> Exception:
            return AssertionError("the agent died")

        spec = Spec(argv, {"LANG": "C.UTF-8"}, cwd)
        return Session(self.channel(), spec, lost=lost, release=lambda: None)


@pytest.fixture
def agent() -> Iterator[Agent]:
    near, far = socket.socketpair()
    far.setblocking(False)
    with near:
        with far:
            argv = [sys.executable, "-c", _WORKER, str(far.fileno())]
            process = subprocess.Popen(argv, pass_fds=[far.fileno()], cwd=ROOT)
        yield Agent(process, near)
    try:
        process.wait(10)  # it ends because we hung up
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One machine for the tests of a file, so that there is never more than one."""
    with Lab.boot(progress=silent) as booted:
        yield booted


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for run directories that no other lab is in."""
    path = tmp_path / "runtime"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def tool(runtime_dir: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start the command line as its users do."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "bridge.cli", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


@pytest.fixture
def call(
    tool: Callable[..., subprocess.Popen[bytes]],
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the command line to its end."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        with tool(*arguments, **environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=90)
            finally:
                process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    return run
