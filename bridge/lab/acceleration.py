"""Which accelerator the machine gets.

/dev/kvm proves nothing: on some hosts a stock guest hangs under it for ever. KVM
is used only where the CPU offers it and a guest has really booted under it since
the host started; otherwise QEMU emulates (TCG).
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bridge.errors import EnvironmentLacking, LabError
from bridge.lab.channel import Channel
from bridge.lab.console import Console
from bridge.lab.image import cache_dir
from bridge.lab.machine import Boot, Options
from bridge.lab.progress import Progress
from bridge.lab.running import Running

_KVM = Path("/dev/kvm")
_PROBE_S = 6.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether KVM can be used, and why or why not."""

    usable: bool
    reason: str


def choose(options: Options, boot: Boot, progress: Progress) -> str:
    """Return ``kvm``, ``tcg`` or ``icount``.

    Raises EnvironmentLacking where KVM is asked for and does not work.
    """
    if options.icount:
        return "icount"
    if options.acceleration == "tcg":
        return "tcg"
    verdict = kvm_verdict(boot, progress)
    if options.acceleration == "kvm" and not verdict.usable:
        raise EnvironmentLacking(
            f"KVM cannot be used: {verdict.reason}",
            cure="leave the choice to the lab, which emulates instead",
        )
    return "kvm" if verdict.usable else "tcg"


def kvm_verdict(boot: Boot, progress: Progress) -> Verdict:
    """Return whether guests boot under KVM; a probe boot's result is remembered."""
    if lacking := _lacks_kvm():
        return Verdict(False, lacking)
    memory = cache_dir() / "kvm-probe.json"
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known = json.loads(memory.read_text())
        if known.pop("host") == host:
            return Verdict(**known)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no memory, or one of an older version: probe
    progress("trying whether a guest boots under KVM ...")
    verdict = probe(boot)
    scratch = memory.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"host": host, **asdict(verdict)}))
    scratch.replace(memory)
    return verdict


def _lacks_kvm() -> str:
    words = set(Path("/proc/cpuinfo").read_text().split())
    if not words & {"svm", "vmx"}:
        return "the CPU offers no virtualisation (neither svm nor vmx in /proc/cpuinfo)"
    if not _KVM.exists():
        return "there is no /dev/kvm"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened by this user (is it in the group kvm?)"
    return ""


def probe(boot: Boot, timeout_s: float = _PROBE_S) -> Verdict:
    """Boot a guest under KVM and see whether it answers within ``timeout_s``."""
    near, far = socket.socketpair()
    console = Console.in_memory()
    options = replace(Options(), boot_timeout_s=timeout_s)
    with near, far:
        try:
            running = Running(options, boot, "kvm", [far], console, listening=False)
        except LabError as error:
            return Verdict(False, error.message)
        far.close()
        try:
            facts = running.greet(Channel(near))
        except LabError as error:
            return Verdict(False, f"a probe boot failed: {error.message.splitlines()[0]}")
        finally:
            running.end()
            console.close()
    return Verdict(True, f"a probe boot took {facts.boot_s:.1f} s")
