"""A guest's command on this process's own standard streams and signals."""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bridge.lab.channel import Deadline, Session
from bridge.lab.guest.frames import CHUNK
from bridge.lab.lab import Lab

_STDIN = 0
_BACKLOG_LIMIT = 1 << 18
_INTERRUPTS_BEFORE_KILL = 2


def pass_through(lab: Lab, argv: Sequence[str], timeout_s: float | None) -> int:
    """Run a command with our streams; return the status a shell would give.

    The first Ctrl-C interrupts the command, the second ends it. Raises LabTimeout
    and GuestCrashed.
    """
    with lab.popen(argv) as session:
        session.on_stdout = lambda data: write_all(1, data)
        session.on_stderr = lambda data: write_all(2, data)
        with caught_signals(signal.SIGINT, signal.SIGTERM) as signals:
            follow(session, signals, Deadline(timeout_s), timeout_s)
    return shell_status(session.returncode or 0)


def interactive(lab: Lab, argv: Sequence[str]) -> int:
    """Run a command on a terminal of the guest that mirrors ours."""
    before = termios.tcgetattr(_STDIN)
    env = {"TERM": os.environ.get("TERM", "linux")}
    with lab.popen(argv, env=env, terminal=_window()) as session:
        session.on_stdout = lambda data: write_all(1, data)
        with caught_signals(signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP) as signals:
            tty.setraw(_STDIN)
            try:
                follow(session, signals, Deadline(None), None)
            finally:
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)
    return shell_status(session.returncode or 0)


def _window() -> tuple[int, int]:
    size = os.get_terminal_size(_STDIN)
    return size.lines, size.columns


def follow(session: Session, signals: int, deadline: Deadline, timeout_s: float | None) -> None:
    """Move bytes and signals until the command ends."""
    interrupts, reading = 0, True
    while session.returncode is None:
        if deadline.passed():
            raise session.timed_out(timeout_s or 0)
        watch = [signals]
        if reading and session.backlog_bytes < _BACKLOG_LIMIT:
            watch.append(_STDIN)
        ready = session.pump(deadline.left_s(), watch)
        if signals in ready:
            for number in os.read(signals, 64):
                if number == signal.SIGWINCH:
                    session.resize(*_window())
                    continue
                interrupts += 1
                fatal = interrupts >= _INTERRUPTS_BEFORE_KILL
                session.signal(signal.SIGKILL if fatal else number)
        if _STDIN in ready:
            reading = _read_stdin(session)


def _read_stdin(session: Session) -> bool:
    try:
        data = os.read(_STDIN, CHUNK)
    except OSError:  # no standard input at all, or a terminal that went away
        data = b""
    if data:
        session.write(data)
    else:
        session.close_stdin()
    return bool(data)


@contextmanager
def caught_signals(*numbers: int) -> Iterator[int]:
    """Turn signals into bytes that can be read from the descriptor yielded."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    wakeup = signal.set_wakeup_fd(write)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def shell_status(returncode: int) -> int:
    """Return a status as a shell gives it: 128 + N for a death by signal N."""
    return 128 - returncode if returncode < 0 else returncode


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
