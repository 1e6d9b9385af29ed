"""Saved machines: a guest that has booted, kept in the cache, back in a moment.

Booting under emulation takes seconds; restoring the guest as it was when its agent
first answered takes a few tenths. A saved machine is valid for exactly the command
line it was started with, the files named there and the QEMU that wrote it; its
name is the hash of these. The file has no name until it is whole, so a killed
save leaves nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import LabError
from bridge.lab import machine
from bridge.lab.channel import Channel, ChannelLostError, Deadline, Session, Spec
from bridge.lab.machine import Boot, Options, Wiring
from bridge.lab.progress import Progress, step
from bridge.lab.running import Running

_KEEP = 3
# What traffic, tracer and tests import in the guest.
_WARM = ("bcc", "click", "pyroute2", "pytest", "rich.console", "scapy.all")
_WARM_S = 60.0


@dataclass(frozen=True, slots=True)
class Store:
    """Where the saved machine of one configuration is, or would be."""

    path: Path

    def open(self) -> int | None:
        """Return a descriptor of the saved machine, None where there is none."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        os.utime(self.path)  # the least recently used is removed first
        return fd

    def discard(self, fd: int) -> None:
        """Remove a saved machine that does not work, unless it was replaced already."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), self.path.stat()):
                self.path.unlink()

    def keep(self, monitor: socket.socket) -> None:
        """Save the machine that ``monitor`` controls; it goes on afterwards.

        Raises LabError where QEMU cannot save it, OSError where there is no room.
        """
        from bridge.lab.monitor import save_machine  # noqa: PLC0415 - rare, and dear

        fd = os.open(self.path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            save_machine(monitor, fd)
            self._name(fd)
        finally:
            os.close(fd)
        _forget_old(self.path.parent)

    def _name(self, fd: int) -> None:
        """Give a file without a name its name (open(2), O_TMPFILE)."""
        here = os.open(self.path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            # Python calls linkat(2), which can follow the link, only with a directory.
            os.link(f"/proc/self/fd/{fd}", self.path, src_dir_fd=here, follow_symlinks=True)
        except FileExistsError:
            pass  # another lab was faster
        finally:
            os.close(here)


def store_for(options: Options, boot: Boot, acceleration: str) -> Store | None:
    """Return where this configuration's saved machine belongs; None where not saved.

    Only emulated machines are saved: under KVM a boot is quick anyway, and under
    icount virtual time has to start at zero. A kernel command line of the user's
    is booted, because that is what it is for.
    """
    if acceleration != "tcg" or options.append or options.fresh:
        return None
    wiring = Wiring(range(machine.PORTS), life=98, console=99, monitor=97)
    program = shutil.which(machine.QEMU) or machine.QEMU
    files = filter(None, (Path(program), boot.kernel, boot.initramfs, boot.root, boot.modules))
    facts = [*machine.command_line(options, acceleration, boot, wiring)]
    for path in files:
        status = path.stat()
        facts.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return Store(boot.initramfs.parent / f"saved-{key}")


@dataclass(frozen=True, slots=True)
class Starter:
    """How a lab starts its machine.

    ``start`` starts it from the descriptor of a saved state, or boots it where that
    is None, and returns once the agent answers; ``connect`` connects to a port;
    ``alive`` is called now and then and may raise.
    """

    start: Callable[[int | None], Running]
    connect: Callable[[], AbstractContextManager[socket.socket]]
    alive: Callable[[], None]
    progress: Progress


def restore_or_boot(store: Store | None, starter: Starter) -> Running:
    """Start a machine from its saved state where there is one, else boot and save it."""
    if store is None:
        return starter.start(None)
    if (fd := store.open()) is not None:
        try:
            return starter.start(fd)
        except LabError:
            store.discard(fd)  # boot instead
        finally:
            os.close(fd)
    running = starter.start(None)
    try:
        with step(starter.progress, "saving the booted guest for quick starts"):
            with starter.connect() as sock:
                _warm_up(Channel(sock), starter.alive)
            store.keep(running.monitor)
    except (OSError, ChannelLostError, LabError) as error:
        starter.progress(f"the guest cannot be saved, so the next one boots too: {error}")
        running.end()  # nobody knows what state it is in
        return starter.start(None)
    except BaseException:
        running.end()
        raise
    return running


def _warm_up(channel: Channel, alive: Callable[[], None]) -> None:
    """Have the guest read what nearly every command reads, so that it is in memory."""

    def lost() -> LabError:
        return LabError("the guest died")

    deadline = Deadline(_WARM_S)
    channel.greet(deadline, alive)
    spec = Spec(("python3", "-c", f"import {', '.join(_WARM)}"), {}, "/")
    with Session(channel, spec, lost=lost, release=lambda: None) as session:
        while session.returncode is None and not deadline.passed():
            alive()
            session.pump(0.5)


def _forget_old(directory: Path) -> None:
    saved = sorted(directory.glob("saved-*"), key=lambda path: -path.stat().st_mtime)
    for path in saved[_KEEP:]:
        path.unlink(missing_ok=True)
