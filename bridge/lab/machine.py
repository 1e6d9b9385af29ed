"""The virtual machine: its options, its command line, its process.

The machine knows nothing of who started it. It is handed open descriptors for
its ports and its console, so a one-shot lab needs no file at all, and a lab that
stays up passes listening sockets instead of connected ones.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridge.errors import EnvironmentLacking

PORTS = 8
QEMU = "qemu-system-x86_64"
Acceleration = Literal["auto", "kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a lab's machine is like.

    ``icount`` makes virtual time count executed instructions: one emulated CPU
    whose costs repeat on any host. ``sanitizer`` boots the image's root with the
    sanitizer kernel. ``append`` is further words for the kernel's command line.
    ``fresh`` boots the guest where a saved one could be restored.
    """

    cpus: int = 2
    memory_mib: int = 2048
    icount: bool = False
    acceleration: Acceleration = "auto"
    suite: str = "trixie"
    sanitizer: bool = False
    append: tuple[str, ...] = ()
    boot_timeout_s: float = 60.0
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """The files a machine starts from; ``key`` names the guest side's version.

    ``modules`` is a squashfs of the kernel's /lib/modules/RELEASE where that is not in
    the root.
    """

    kernel: Path
    initramfs: Path
    root: Path
    key: str
    modules: Path | None = None


@dataclass(frozen=True, slots=True)
class Wiring:
    """Descriptors handed to the machine; ``ports`` listen where ``listening``.

    ``saved`` is a file to restore the guest from, instead of booting it.
    """

    ports: Sequence[int]
    life: int
    console: int
    monitor: int
    saved: int | None = None
    listening: bool = False

    def all(self) -> list[int]:
        """Return every descriptor."""
        saved = [] if self.saved is None else [self.saved]
        return [*self.ports, self.life, self.console, self.monitor, *saved]


def start(
    options: Options, accelerator: str, boot: Boot, wiring: Wiring
) -> subprocess.Popen[bytes]:
    """Start QEMU; it dies with the calling thread's process.

    Its complaints go to the console's descriptor. Raises EnvironmentLacking where
    QEMU is missing. The kernel ties the death signal to the thread that forks
    (prctl(2), PR_SET_PDEATHSIG), so from another thread than the main one the
    guest's life line is the only tie.
    """
    require_qemu()
    argv = command_line(options, accelerator, boot, wiring)
    if threading.current_thread() is threading.main_thread() and shutil.which("setpriv"):
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=wiring.console,
        stderr=wiring.console,
        pass_fds=wiring.all(),
        # Ctrl-C at the terminal is for the tool, which tells the guest.
        start_new_session=True,
    )


def require_qemu() -> None:
    """Raise EnvironmentLacking where QEMU is missing."""
    if shutil.which(QEMU) is None:
        raise EnvironmentLacking(
            f"the lab needs {QEMU}, which is not installed",
            cure="install the package qemu-system-x86 (make setup does)",
        )


def command_line(options: Options, accelerator: str, boot: Boot, wiring: Wiring) -> list[str]:
    """Return QEMU's command line."""
    argv = [QEMU, "-machine", "q35", "-nodefaults", "-no-user-config", "-no-reboot"]
    argv += ["-display", "none", "-m", str(options.memory_mib)]
    argv += _cpu_args(options, accelerator)
    argv += ["-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)]
    argv += ["-append", " ".join(kernel_words(options, boot))]
    for number, path in enumerate(filter(None, (boot.root, boot.modules))):
        drive = f"if=none,id=disk{number},format=raw,readonly=on,file={_escape(path)}"
        argv += ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{number}"]
    console = f"file,id=console,append=on,path=/proc/self/fd/{wiring.console}"
    argv += ["-chardev", console, "-serial", "chardev:console"]
    argv += ["-device", "virtio-serial-pci"]
    server = ",server=on,wait=off" if wiring.listening else ""
    for number, fd in enumerate(wiring.ports):
        argv += _port_args(f"lab.{number}", fd, server)
    argv += _port_args("lab.life", wiring.life, "")
    argv += ["-chardev", f"socket,id=monitor,fd={wiring.monitor}"]
    argv += ["-mon", "chardev=monitor,mode=control"]
    if wiring.saved is not None:
        argv += ["-incoming", f"fd:{wiring.saved}"]
    return argv


def kernel_words(options: Options, boot: Boot) -> list[str]:
    """Return the kernel's command line; a crash of any kind ends the machine."""
    words = ["console=ttyS0", "panic=-1", "oops=panic", "mitigations=off"]
    if options.sanitizer:
        words.append("kasan_multi_shot")  # report every fault, not the first alone
        # Connection tracking walks its whole table now and then, which takes long here,
        # as does whatever waits for readers.
        words += ["nf_conntrack.hashsize=256", "rcupdate.rcu_expedited=1"]
    return [*words, f"LAB_KEY={boot.key}", *options.append]


def _cpu_args(options: Options, accelerator: str) -> list[str]:
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host", "-smp", str(options.cpus)]
    # Without a random source the kernel gathers jitter, for 1.5 s, before the
    # first program that asks for random bytes goes on.
    cpu = ["-cpu", "qemu64,+rdrand"]
    if options.icount:
        icount = ["-icount", "shift=0,sleep=off", "-seed", "1"]
        return ["-accel", "tcg", *icount, *cpu, "-smp", "1"]
    # One host thread for all emulated CPUs: with one each, a kernel that patches its
    # own code (static keys, kprobes) now and then dies of a stale translation.
    return ["-accel", "tcg,thread=single", *cpu, "-smp", str(options.cpus)]


def _port_args(name: str, fd: int, server: str) -> list[str]:
    chardev = f"socket,id={name},fd={fd}{server}"
    return ["-chardev", chardev, "-device", f"virtserialport,chardev={name},name={name}"]


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")
