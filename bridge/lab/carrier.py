"""What carries a lab: a machine of one's own, or one that a supervisor keeps up."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from bridge.errors import GuestCrashed, LabError, LabTimeout
from bridge.lab import initramfs, machine
from bridge.lab.acceleration import choose
from bridge.lab.channel import Channel
from bridge.lab.console import Console
from bridge.lab.machine import Boot, Options
from bridge.lab.progress import Progress
from bridge.lab.rundir import RunDir
from bridge.lab.running import Facts, Running, prepare
from bridge.lab.saved import Starter, restore_or_boot, store_for

_BOOTING_S = 60.0
_FREE_PORT_S = 30.0
_DEATH_S = 5.0


class Carrier(Protocol):
    """The part of a lab that differs between its two kinds."""

    console: Console
    facts: Facts
    cure: str | None

    def acquire(self) -> socket.socket:
        """Return a connected port that nobody else uses."""

    def release(self, sock: socket.socket) -> None:
        """Give a port back."""

    def crashed(self) -> GuestCrashed:
        """Return the error that says why the machine is gone."""

    def close(self) -> None:
        """End what belongs to this lab alone."""


class OneShot:
    """A machine of one's own: no file, no listening socket, ends with its owner."""

    cure: str | None = None

    def __init__(self, options: Options, progress: Progress) -> None:
        boot = prepare(options, progress)
        acceleration = choose(options, boot, progress)
        self._condition = threading.Condition()
        self._free: list[socket.socket] = []
        self.console = Console.in_memory()

        def start(saved: int | None) -> Running:
            return self._start(options, boot, acceleration, saved)

        try:
            store = store_for(options, boot, acceleration)
            starter = Starter(start, self._borrow, lambda: None, progress)
            self._running = restore_or_boot(store, starter)
        except BaseException:
            self.console.close()
            raise

    def _start(
        self, options: Options, boot: Boot, acceleration: str, saved: int | None
    ) -> Running:
        self._close_ports()  # of a machine that could not be saved
        pairs = [socket.socketpair() for _ in range(machine.PORTS)]
        self._free = [near for near, _ in pairs]
        far = [sock for _, sock in pairs]
        try:
            running = Running(
                options, boot, acceleration, far, self.console, listening=False, saved=saved
            )
        except BaseException:
            self._close_ports()
            raise
        finally:
            for sock in far:
                sock.close()
        try:
            self.facts = running.greet(Channel(self._free[-1]))
        except BaseException:
            running.end()
            self._close_ports()
            raise
        return running

    @contextmanager
    def _borrow(self) -> Iterator[socket.socket]:
        yield self._free[-1]

    def acquire(self) -> socket.socket:
        """Return a free port, waiting for one where all are in use."""
        self.console.trim()
        with self._condition:
            while not self._free:
                self._condition.wait()
            return self._free.pop()

    def release(self, sock: socket.socket) -> None:
        """Give a port back; its next user's greeting ends what runs there."""
        with self._condition:
            self._free.append(sock)
            self._condition.notify()

    def crashed(self) -> GuestCrashed:
        """Return why the machine is gone."""
        return self._running.crashed()

    def close(self) -> None:
        """End the machine."""
        self._running.end()
        self._close_ports()
        self.console.close()

    def _close_ports(self) -> None:
        for sock in self._free:
            sock.close()
        self._free.clear()


class Attached:
    """A lab that a supervisor keeps up."""

    def __init__(self, name: str) -> None:
        self._directory = RunDir(name)
        self.cure: str | None = f"end it with: lunabridge lab down --name {name}"
        if not self._directory.is_alive():
            raise LabError(
                f"no lab {name!r} is up", cure=f"start it with: lunabridge lab up --name {name}"
            )
        facts = self._await_facts()
        if facts.key != initramfs.agent_key():
            raise LabError(f"the lab {name!r} was started by another version", cure=self.cure)
        self.facts = facts
        path = self._directory.path / "console.log"
        self.console = Console(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._locks: dict[int, int] = {}

    def _await_facts(self) -> Facts:
        """Wait for a lab that is still booting."""
        end = time.monotonic() + _BOOTING_S
        while self._directory.is_alive() and time.monotonic() < end:
            if facts := self._directory.read_facts():
                return facts
            time.sleep(0.05)
        raise LabTimeout(f"the lab {self._directory.name!r} does not come up", cure=self.cure)

    @staticmethod
    def is_running(name: str) -> bool:
        """Return whether a lab of that name is up."""
        return RunDir(name).is_alive()

    def acquire(self) -> socket.socket:
        """Return a port that no other process uses; raises LabTimeout where none is free."""
        end = time.monotonic() + _FREE_PORT_S
        while time.monotonic() < end:
            for number in range(machine.PORTS):
                if sock := self._try_port(number):
                    return sock
            time.sleep(0.05)
        raise LabTimeout(f"all {machine.PORTS} ports of the lab are in use", cure=self.cure)

    def _try_port(self, number: int) -> socket.socket | None:
        try:
            path = self._directory.path / f"port{number}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise self.crashed() from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sock = self._directory.connect(f"port{number}")
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:
            os.close(lock)
            raise self.crashed() from None
        self._locks[sock.fileno()] = lock
        return sock

    def release(self, sock: socket.socket) -> None:
        """Hang up, which ends what still runs there."""
        lock = self._locks.pop(sock.fileno())
        sock.close()
        os.close(lock)

    def crashed(self) -> GuestCrashed:
        """Return why the machine is gone."""
        self._directory.wait_gone(_DEATH_S)
        cause = self.console.cause_of_death()
        return GuestCrashed(f"the guest died: {cause}", console=self.console.last_words())

    def close(self) -> None:
        """Leave the lab as it is."""
        self.console.close()
