"""Process 1 of the lab: starts workers, reaps, and ends the machine with its tool."""

import os
import select
import signal
import sys
import time

from .worker import Worker

LIFE = "lab.life"
LIFE_GRACE_S = 10.0  # until then the life line must have been there


def main() -> None:
    """Run as process 1."""
    try:
        init = Init(os.environ.get("LAB_KEY", ""))
        sys.stdout.write("lab: the agent is ready\n")
        sys.stdout.flush()
        init.run()
    except BaseException as error:
        complain(error)  # its death would be a panic without a word
        raise


class Init:
    """The ports, and the worker of each that is in use."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._workers: dict[int, int] = {}  # process to port
        self._epoll = select.epoll()
        self._life = -1
        self._alive = False
        for name, device in find_ports().items():
            fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if name == LIFE:
                self._life = fd
            self._watch(fd)
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._epoll.register(self._wake, select.EPOLLIN)

    def run(self) -> None:
        """Serve for as long as the machine lives."""
        deadline_s = time.monotonic() + LIFE_GRACE_S
        while True:
            for fd, events in self._epoll.poll(None if self._alive else 0.5):
                if fd == self._wake:
                    self._reap()
                elif fd != self._life and events & select.EPOLLIN:
                    self._start_worker(fd)
            self._watch_life(deadline_s)

    def _watch(self, port: int) -> None:
        # Edge-triggered: a port without a host reports its hang-up for ever.
        self._epoll.register(port, select.EPOLLIN | select.EPOLLET)

    def _watch_life(self, deadline_s: float) -> None:
        """End the machine when its tool is gone, or never was there."""
        poller = select.poll()
        poller.register(self._life, 0)
        gone = any(events & select.POLLHUP for _, events in poller.poll(0))
        if gone and (self._alive or time.monotonic() > deadline_s):
            power_off()
        self._alive = not gone

    def _start_worker(self, port: int) -> None:
        # Not polled from here meanwhile: the driver's poll takes what is in its ring,
        # before the interrupt that would have woken the worker, which then sleeps on.
        self._epoll.unregister(port)
        pid = os.fork()
        if pid:
            self._workers[pid] = port
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):  # a command inherits these
                signal.signal(number, signal.SIG_DFL)
            self._epoll.close()
            Worker(port, self._key, own_clock=True).run()
        except BaseException as error:  # noqa: BLE001 - it must not become process 1
            complain(error)
        finally:
            os._exit(0)

    def _reap(self) -> None:
        """Reap every child, and listen again on the ports of ended workers."""
        drain(self._wake)
        while (pid := reap_one()) > 0:
            if pid in self._workers:
                self._watch(self._workers.pop(pid))


def reap_one() -> int:
    """Return a child that ended; 0 or less where there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return -1


def drain(fd: int) -> None:
    """Read everything that is in a pipe."""
    try:
        while os.read(fd, 512):
            pass
    except BlockingIOError:
        pass


def find_ports() -> dict[str, str]:
    """Return the device of each virtio-serial port, by the port's name."""
    found = {}
    base = "/sys/class/virtio-ports"
    for device in os.listdir(base):
        with open(f"{base}/{device}/name", encoding="ascii") as file:
            found[file.read().strip()] = f"/dev/{device}"
    return found


def power_off() -> None:
    """End the machine at once."""
    with open("/proc/sysrq-trigger", "w", encoding="ascii") as trigger:
        trigger.write("o")


def complain(error: BaseException) -> None:
    """Put an internal error on the console, where the host looks for it."""
    import traceback  # noqa: PLC0415 - needed once, and dear to import at each boot

    text = "".join(traceback.format_exception(error))
    with open("/dev/console", "w", encoding="utf-8") as console:
        console.write(f"lab: agent: {text}")
