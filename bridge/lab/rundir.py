"""Run directories: where labs that stay up can be found.

    lock          held by the supervisor for as long as the lab lives
    state.json    facts, once the lab answers
    console.log   the guest's console
    control       a socket: connect and write `down`
    port0...      the machine's ports, each with the lock of its user

Whether a lab lives is told by its lock, never by a process number.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge.errors import LabError, UsageError
from bridge.lab.running import Facts

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


def base_dir() -> Path:
    """Return the directory that holds the run directories, making it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        path = Path(runtime) / "lunatik-bridge"
    else:
        path = Path(tempfile.gettempdir()) / f"lunatik-bridge-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    owner = path.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077 or path.is_symlink():
        raise LabError(
            f"{path} is not private to this user", cure="remove it, or set XDG_RUNTIME_DIR"
        )
    return path


class RunDir:
    """The run directory of the lab ``name``."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be a lab's name", cure="use letters, digits, - _ and ."
            )
        self.name = name
        self.path = base_dir() / name

    def is_alive(self) -> bool:
        """Return whether the lab's supervisor lives."""
        with _registry():
            return self._held()

    def claim(self) -> int:
        """Make the directory; return the lock that keeps it. Raises LabError if taken."""
        with _registry():
            if self._held():
                raise LabError(
                    f"the lab {self.name!r} is up already",
                    cure=f"use it, or end it with: lunabridge lab down --name {self.name}",
                )
            self.remove()
            self.path.mkdir(mode=0o700)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            return lock

    def remove(self) -> None:
        """Remove the directory."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def read_facts(self) -> Facts | None:
        """Return the lab's facts, None while it still boots."""
        try:
            state: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        except FileNotFoundError:
            return None
        return Facts(**state)

    def write_facts(self, facts: Facts) -> None:
        """State that the lab answers."""
        scratch = self.path / "state.json.new"
        scratch.write_text(json.dumps(asdict(facts)))
        scratch.replace(self.path / "state.json")

    def listen(self, name: str) -> socket.socket:
        """Return a socket that listens in the directory."""
        sock = socket.socket(socket.AF_UNIX)
        with self._short_path() as short:
            sock.bind(f"{short}/{name}")
        sock.listen(8)
        return sock

    def connect(self, name: str) -> socket.socket:
        """Return a socket connected to one in the directory; raises OSError."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            with self._short_path() as short:
                sock.connect(f"{short}/{name}")
        except BaseException:
            sock.close()
            raise
        return sock

    def wait_gone(self, timeout_s: float) -> bool:
        """Return whether the lab ended within ``timeout_s``."""
        end = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    @contextmanager
    def _short_path(self) -> Iterator[str]:
        """Yield a path that fits a socket's address, which holds 107 bytes (unix(7))."""
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{directory}"
        finally:
            os.close(directory)

    def _held(self) -> bool:
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False


def all_labs() -> list[RunDir]:
    """Return every run directory there is, stale ones too."""
    return [RunDir(path.name) for path in sorted(base_dir().iterdir()) if path.is_dir()]


def remove_stale() -> list[str]:
    """Remove run directories whose supervisor is gone; return their paths."""
    removed = []
    for lab in all_labs():
        with _registry():
            if not lab._held():
                lab.remove()
                removed.append(str(lab.path))
    return removed


@contextmanager
def _registry() -> Iterator[None]:
    """Keep others from making or removing run directories meanwhile."""
    with (base_dir() / ".registry").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
