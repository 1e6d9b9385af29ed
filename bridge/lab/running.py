"""A started machine, watched stage by stage until its agent answers."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.errors import GuestCrashed, LabTimeout
from bridge.lab import image, initramfs, machine, recipe, sanitizer
from bridge.lab.channel import Channel, ChannelLostError, Deadline
from bridge.lab.console import Console
from bridge.lab.machine import Boot, Options, Wiring
from bridge.lab.progress import Progress

_CONSOLE_S = 20.0
_RESTORE_S = 10.0
_DEATH_S = 5.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a running lab.

    ``boot_s`` is the time from starting the machine to its agent's first answer,
    ``key`` names the agent's version, ``restored`` says that the guest was not
    booted but came back from where it had been saved.
    """

    release: str
    acceleration: str
    boot_s: float
    key: str
    restored: bool = False


def prepare(options: Options, progress: Progress) -> Boot:
    """Return the files to boot from, building what is not cached."""
    machine.require_qemu()  # before minutes are spent on an image
    plan = recipe.load(options.suite)
    built = image.ensure(plan, progress)
    other = sanitizer.ensure(progress) if options.sanitizer else None
    return Boot(
        kernel=other.bzimage if other else built.vmlinux,
        # The sanitizer kernel has everything built in.
        initramfs=initramfs.build(built, plan, None if other else built.modules),
        root=built.squashfs,
        key=initramfs.agent_key(),
        modules=other.modules if other else None,
    )


class Running:
    """A machine's process, its console and its life line.

    ``saved`` is a file to restore the guest from; it stays the caller's.
    """

    def __init__(
        self,
        options: Options,
        boot: Boot,
        acceleration: str,
        ports: Sequence[socket.socket],
        console: Console,
        *,
        listening: bool,
        saved: int | None = None,
    ) -> None:
        self.console = console
        self.acceleration = acceleration
        self._restored = saved is not None
        self._timeout_s = _RESTORE_S if self._restored else options.boot_timeout_s
        self._life, guest_life = socket.socketpair()
        self.monitor, guest_monitor = socket.socketpair()
        wiring = Wiring(
            [port.fileno() for port in ports],
            life=guest_life.fileno(),
            console=console.fd,
            monitor=guest_monitor.fileno(),
            saved=saved,
            listening=listening,
        )
        self.started = time.monotonic()
        with guest_life, guest_monitor:
            try:
                self.process = machine.start(options, acceleration, boot, wiring)
            except BaseException:
                self._hang_up()
                raise

    def greet(self, channel: Channel, alive: Callable[[], None] = lambda: None) -> Facts:
        """Wait for the agent; raises LabTimeout or GuestCrashed, or what ``alive`` does."""

        def watch() -> None:
            alive()
            if self.process.poll() is not None:
                raise ChannelLostError
            self._watch_kernel()

        try:
            greeting = channel.greet(Deadline(self._timeout_s), watch)
        except ChannelLostError:
            raise self.crashed("the guest died while it booted") from None
        except LabTimeout as error:
            if not self._spoke():
                raise
            raise self._stalled(
                f"the kernel started, but no command could run in it {self._within()}"
            ) from error
        boot_s = time.monotonic() - self.started
        return Facts(
            greeting.release, self.acceleration, boot_s, greeting.key, restored=self._restored
        )

    def crashed(self, what: str = "the guest died") -> GuestCrashed:
        """Return the error for a machine that ended by itself."""
        try:
            self.process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            self.end()
        cause = self.console.cause_of_death()
        return GuestCrashed(f"{what}: {cause}", console=self.console.last_words())

    def end(self) -> None:
        """Kill the machine."""
        self._hang_up()
        self.process.kill()
        self.process.wait()

    def _hang_up(self) -> None:
        self._life.close()
        self.monitor.close()

    def _spoke(self) -> bool:
        """Return whether the guest's kernel printed anything yet."""
        return self.console.size_bytes > 0

    def _watch_kernel(self) -> None:
        if self._restored:
            return  # it has nothing to print
        if not self._spoke() and time.monotonic() - self.started > _CONSOLE_S:
            raise self._stalled(f"its kernel printed nothing within {_CONSOLE_S:g} s")

    def _within(self) -> str:
        return f"within {self._timeout_s:g} s"

    def _stalled(self, what: str) -> LabTimeout:
        tail = self.console.tail(15)
        return LabTimeout(f"the lab did not boot: {what}" + (f"\n{tail}" if tail else ""))
