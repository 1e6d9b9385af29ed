"""Who owns a namespace: run records, and the removal of what killed runs left.

Each run has a token, which is part of its namespaces' names (``lb-TOKEN-HOST``), and a
record file that it keeps locked with flock(2) while it lives. The kernel drops the lock
however the run ends, so a record that can be locked belongs to a dead run. Unlike a
process id, a lock is never reused and means the same in every pid namespace.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import EnvironmentLacking
from netns import namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "lb-"
RECORDS = Path("/run/lunatik-bridge/netns")
_END_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """One live claim on the names that start with ``prefix``."""

    token: str
    lock_fd: int
    owner_pid: int

    @property
    def prefix(self) -> str:
        """The start of every namespace name of this run."""
        return f"{PREFIX}{self.token}-"

    def release(self) -> list[str]:
        """Remove all that bears this run's prefix, then the record; say what went.

        Does nothing in a forked child, which inherited the claim but does not own it.
        """
        if os.getpid() != self.owner_pid:
            return []
        try:
            return _remove_run(self.token)
        finally:
            os.close(self.lock_fd)


def claim() -> Run:
    """Start a run: write and lock its record before anything else is made.

    Raises EnvironmentLacking without the right to write below /run.
    """
    try:
        RECORDS.mkdir(parents=True, exist_ok=True)
        while True:
            run = _try_claim(secrets.token_hex(3))
            if run is not None:
                return run
    except PermissionError as error:
        raise EnvironmentLacking(
            f"cannot write {RECORDS}: network namespaces need root's rights",
            cure="run it in the lab, which needs no privilege: lunabridge lab run -- COMMAND",
        ) from error


def clean_leftovers() -> list[str]:
    """Remove the namespaces of runs that died without tear-down; say what was removed.

    Processes that still live in such a namespace are killed, since they would keep it.
    Namespaces of live runs, and those this package did not make, are never touched.
    """
    removed: list[str] = []
    if not RECORDS.is_dir():
        return removed
    for record in sorted(RECORDS.iterdir()):
        with _locked_if_dead(record) as dead:
            if dead:
                removed += _remove_run(record.name)
    return removed


def _try_claim(token: str) -> Run | None:
    path = RECORDS / token
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        # A cleaner may have found the record before it was locked, and removed it.
        if not path.exists() or path.stat().st_ino != os.fstat(fd).st_ino:
            os.close(fd)
            return None
        about = {"pid": os.getpid(), "command": sys.argv, "since": time.time()}
        os.write(fd, json.dumps(about).encode())
    except BaseException:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(fd)
        raise
    return Run(token, fd, os.getpid())


@contextmanager
def _locked_if_dead(record: Path) -> Iterator[bool]:
    """Hold the record's lock if its run is dead; the value says whether it is."""
    with ExitStack() as stack:
        try:
            fd = os.open(record, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            yield False
        else:
            yield record.exists()


def _remove_run(token: str) -> list[str]:
    removed: list[str] = []
    for name in _names(token):
        removed += _end_processes(name)
        namespace.remove(name)
        removed.append(f"network namespace {name}")
    (RECORDS / token).unlink(missing_ok=True)
    return removed


def _names(token: str) -> Iterator[str]:
    yield from sorted(path.name for path in namespace.DIRECTORY.glob(f"{PREFIX}{token}-*"))


def _end_processes(name: str) -> list[str]:
    """Kill what still runs inside, and wait until it has ended."""
    inode = (namespace.DIRECTORY / name).stat().st_ino
    ended: dict[int, str] = {}
    deadline = time.monotonic() + _END_DEADLINE_S
    while (inside := namespace.processes_inside(inode)) and time.monotonic() < deadline:
        for pid, command in inside:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            ended[pid] = command
        time.sleep(0.001)
    return [f"process {pid} ({command}) in {name}" for pid, command in ended.items()]
