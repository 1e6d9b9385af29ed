"""What carries a lab: a machine of one's own, or one that a supervisor keeps up."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import GuestCrashed, LabError, LabTimeout
from bridge.lab import image, initramfs, machine, recipe
from bridge.lab.acceleration import choose
from bridge.lab.channel import Channel, ChannelLost, Deadline, Greeting
from bridge.lab.console import Console
from bridge.lab.machine import Boot, Options, Wiring
from bridge.lab.progress import Progress

_CONSOLE_S = 20.0
_DEATH_S = 5.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a running lab."""

    release: str
    acceleration: str
    boot_s: float
    key: str


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


def prepare(options: Options, progress: Progress) -> Boot:
    """Return the files to boot from, building what is not cached."""
    plan = recipe.load(options.suite)
    built = image.ensure(plan, progress)
    return Boot(
        kernel=options.kernel or built.vmlinux,
        initramfs=initramfs.build(built, plan, options.modules),
        root=built.squashfs,
        key=initramfs.agent_key(),
    )


class Running:
    """A started machine, up to its agent's first answer."""

    def __init__(self, options: Options, progress: Progress, wiring_ports: list[int],
                 console: Console, *, listening: bool) -> None:  # fmt: skip
        self.console = console
        self._options = options
        boot = prepare(options, progress)
        self.acceleration = choose(options, boot, progress)
        self.life, guest_life = socket.socketpair()
        wiring = Wiring(wiring_ports, guest_life.fileno(), console.fd, listening=listening)
        self.started = time.monotonic()
        try:
            self.process = machine.start(options, self.acceleration, boot, wiring)
        except BaseException:
            self.life.close()
            raise
        finally:
            guest_life.close()

    def greet(self, channel: Channel) -> Facts:
        """Wait for the agent, stage by stage; raises LabTimeout or GuestCrashed."""
        try:
            greeting: Greeting = channel.greet(
                Deadline(self._options.boot_timeout_s), self._watch_boot
            )
        except ChannelLost:
            raise self.crashed("the guest died while it booted") from None
        except LabTimeout as error:
            stage = "the kernel started, its first user space" if self._spoke() else "the kernel"
            raise self._stalled(f"{stage} did not answer") from error
        boot_s = time.monotonic() - self.started
        return Facts(greeting.release, self.acceleration, boot_s, greeting.key)

    def crashed(self, what: str = "the guest died") -> GuestCrashed:
        """Return the error for a machine that ended by itself."""
        try:
            self.process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            self.end()
        cause = self.console.cause_of_death()
        return GuestCrashed(f"{what}: {cause}", console=self.console.tail())

    def end(self) -> None:
        """Kill the machine."""
        self.life.close()
        self.process.kill()
        self.process.wait()

    def _spoke(self) -> bool:
        return self.console.size_bytes > 0

    def _watch_boot(self) -> None:
        if not self._spoke() and time.monotonic() - self.started > _CONSOLE_S:
            raise self._stalled(f"the kernel printed nothing within {_CONSOLE_S:g} s")

    def _stalled(self, what: str) -> LabTimeout:
        tail = self.console.tail(15)
        return LabTimeout(f"the lab did not boot: {what}" + (f"\n{tail}" if tail else ""))


class OneShot:
    """A machine of one's own: no file, no listening socket, ends with its owner."""

    cure: str | None = None

    def __init__(self, options: Options, progress: Progress) -> None:
        pairs = [socket.socketpair() for _ in range(machine.PORTS)]
        self.console = Console.in_memory()
        self._free = [near for near, _ in pairs]
        self._condition = threading.Condition()
        try:
            far = [sock.fileno() for _, sock in pairs]
            self._running = Running(options, progress, far, self.console, listening=False)
        except BaseException:
            self._close_sockets()
            raise
        finally:
            for _, sock in pairs:
                sock.close()
        try:
            self.facts = self._running.greet(Channel(self._free[0]))
        except BaseException:
            self.close()
            raise

    def acquire(self) -> socket.socket:
        """Return a free port, waiting for one where all are in use."""
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
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in self._free:
            sock.close()
        self._free.clear()
        self.console.close()


class Attached:
    """A lab that a supervisor keeps up."""

    console: Console
    facts: Facts
    cure: str | None = "end it with: lunabridge lab down"

    def __init__(self, name: str) -> None:
        raise LabError(f"no lab {name!r} is up")

    @staticmethod
    def is_running(name: str) -> bool:
        """Return whether a lab of that name is up."""
        return False and bool(os.sep in name)

    def acquire(self) -> socket.socket:
        raise NotImplementedError

    def release(self, sock: socket.socket) -> None:
        raise NotImplementedError

    def crashed(self) -> GuestCrashed:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
