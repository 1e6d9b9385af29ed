"""A process that the host started, on pipes or on a terminal."""

import errno
import fcntl
import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from .frames import CHUNK

GRACE_S = 0.1  # how long output of a command that ended is waited for
GRACE_MAX_S = 1.0
KILL_S = 2.0  # how long killed processes are waited for
_TIOCSWINSZ = 0x5414


class Command:
    """A process the host started, with its pipes or its terminal."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str, terminal: bytes) -> None:
        self.inbox = bytearray()
        self.eof = False
        self.status: int | None = None
        self.ended_s = 0.0
        self.quiet_s = 0.0
        self.terminal = -1
        if terminal:
            self._start_on_terminal(argv, env, cwd, terminal)
        else:
            self._start_on_pipes(argv, env, cwd)
        self.pidfd = os.pidfd_open(self.pid)
        for fd in {self.stdin, *self.outputs}:
            os.set_blocking(fd, False)

    def _start_on_pipes(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            become(argv, env, cwd, lambda: redirect(stdin[0], stdout[1], stderr[1]))
        for fd in (stdin[0], stdout[1], stderr[1]):
            os.close(fd)
        self.stdin = stdin[1]
        self.outputs = {stdout[0]: "STDOUT", stderr[0]: "STDERR"}

    def _start_on_terminal(
        self, argv: list[str], env: dict[str, str], cwd: str, terminal: bytes
    ) -> None:
        master, slave = os.openpty()
        self.terminal = master
        self.resize(*map(int, terminal.split()))
        self.pid = os.fork()
        if self.pid == 0:
            become(argv, env, cwd, lambda: os.login_tty(slave))
        os.close(slave)
        self.stdin = master
        self.outputs = {master: "STDOUT"}

    def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal its size in characters."""
        if self.terminal >= 0:
            size = b"".join(n.to_bytes(2, "little") for n in (rows, cols, 0, 0))
            fcntl.ioctl(self.terminal, _TIOCSWINSZ, size)

    def interest(self, room: bool) -> dict[int, int]:
        """Return what to poll for; output only where there is ``room`` for it."""
        events = dict.fromkeys(self.outputs, select.POLLIN) if room else {}
        if self.inbox and self.stdin >= 0:
            events[self.stdin] = events.get(self.stdin, 0) | select.POLLOUT
        if self.status is None:
            events[self.pidfd] = select.POLLIN
        return events

    def take_input(self) -> int:
        """Write what is queued for standard input; return the bytes written."""
        try:
            size = os.write(self.stdin, self.inbox[:65536])
        except BlockingIOError:
            return 0
        except OSError:  # nobody reads it any more: swallow the rest
            size = len(self.inbox)
        del self.inbox[:size]
        return size

    def close_input(self) -> None:
        """Let the command see the end of its standard input."""
        if self.stdin < 0:
            return
        if self.terminal >= 0:
            self.inbox += b"\x04"
        else:
            os.close(self.stdin)
            self.stdin = -1

    def read_output(self, fd: int) -> bytes | None:
        """Return what the command wrote to ``fd``; b"" at its end, None if nothing."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # a terminal without a process left
            data = b""
        if not data:
            del self.outputs[fd]
            if fd != self.terminal:
                os.close(fd)
        self.quiet_s = time.monotonic()
        return data

    def reap(self) -> None:
        """Take the status of the process, which has ended."""
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        self.ended_s = self.quiet_s = time.monotonic()

    def drained(self) -> bool:
        """Return whether an ended command's output is all there.

        A background child may hold the pipes open for ever, so their end is not
        waited for beyond a grace.
        """
        now = time.monotonic()
        return (
            not self.outputs or now - self.quiet_s > GRACE_S or now - self.ended_s > GRACE_MAX_S
        )

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        if self.status is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # it has not come to make its group yet
                os.kill(self.pid, number)

    def close(self) -> None:
        """Close every descriptor; the process is left alone."""
        fds = {self.stdin, self.terminal, self.pidfd, *self.outputs} - {-1}
        for fd in fds:
            os.close(fd)

    def kill(self) -> None:
        """Kill every process of the command's session, and close."""
        deadline_s = time.monotonic() + KILL_S
        # Again until none is left: one may have forked since they were listed.
        while (members := session_members(self.pid)) and time.monotonic() < deadline_s:
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if self.status is None:
                self.reap()
            time.sleep(0.001)  # process 1 reaps the others
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)  # it has not come to make its session yet
            self.reap()
        self.close()


def session_members(sid: int) -> list[int]:
    """Return the processes of session ``sid``."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == sid:
                    found.append(int(name))
            except OSError:
                pass
    return found


def redirect(stdin: int, stdout: int, stderr: int) -> None:
    """Make the descriptors the standard ones, in a session of its own."""
    os.setsid()
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def become(
    argv: list[str], env: dict[str, str], cwd: str, attach: Callable[[], None]
) -> NoReturn:
    """Turn this forked process into the command."""
    try:
        attach()
        os.closerange(3, 256)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these
            signal.signal(number, signal.SIG_DFL)
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        what = error.filename or argv[0]
        os.write(2, f"lab: {os.fsdecode(what)}: {error.strerror}\n".encode())
        os._exit(127 if error.errno == errno.ENOENT else 126)
    finally:
        os._exit(126)
