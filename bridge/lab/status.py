"""What labs there are, what was left behind, and whether this machine can run one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import BridgeError, EnvironmentLacking
from bridge.lab import image, initramfs, machine, recipe, rundir
from bridge.lab.acceleration import kvm_verdict
from bridge.lab.lab import Lab
from bridge.lab.machine import Options
from bridge.lab.progress import silent
from bridge.lab.running import Facts, prepare

_IMAGE_NEEDS_BYTES = 3 << 30
_PROGRAM_S = 10.0


@dataclass(frozen=True, slots=True)
class LabStatus:
    """One lab that is up; ``facts`` is None while it boots."""

    name: str
    facts: Facts | None
    answers: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """Every lab, the image's directory if built, and the stale run directories removed."""

    labs: list[LabStatus]
    image: str | None
    removed: list[str]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing the lab needs; ``ok`` None means it is not needed or not known yet."""

    name: str
    ok: bool | None
    detail: str
    cure: str = ""


def survey() -> Survey:
    """Return what labs there are, removing stale run directories."""
    removed = rundir.remove_stale()
    labs = [_look_at(lab) for lab in rundir.all_labs()]
    built = image.find(recipe.load())
    return Survey(labs, str(built.directory) if built else None, removed)


def _look_at(directory: rundir.RunDir) -> LabStatus:
    facts = directory.read_facts()
    answers = False
    if facts:
        try:
            with Lab.attach(directory.name) as lab:
                lab.ping(timeout_s=3)
            answers = True
        except BridgeError:
            pass  # it is listed as one that does not answer
    return LabStatus(directory.name, facts, answers)


def clean_leftovers() -> list[str]:
    """Remove what killed runs and builds left behind; return what was removed."""
    return rundir.remove_stale() + image.clean_leftovers()


def diagnose() -> list[Check]:
    """Try everything the lab needs of this machine."""
    return [check() for check in _checks()]


def _checks() -> Iterator[Callable[[], Check]]:
    built = image.find(recipe.load()) is not None
    yield _python
    yield lambda: _program(machine.QEMU, "--version", "qemu-system-x86", needed=True)
    yield lambda: _program("setpriv", "--version", "util-linux", needed=True)
    yield lambda: _program("mmdebstrap", "--version", "mmdebstrap", needed=not built)
    yield lambda: _program("mksquashfs", "-version", "squashfs-tools", needed=not built)
    yield lambda: _program("zstd", "--version", "zstd", needed=not built)
    yield _namespaces
    yield lambda: _keyring(needed=not built)
    yield lambda: _disk(needed=not built)
    yield lambda: _kvm(built)
    yield lambda: _boots(built)


def _python() -> Check:
    return Check("python", True, sys.version.split()[0])


def _program(program: str, flag: str, package: str, *, needed: bool) -> Check:
    cure = f"install the package {package} (make setup does)"
    if shutil.which(program) is None:
        return Check(program, False if needed else None, "not installed", cure)
    done = subprocess.run(
        [program, flag], capture_output=True, text=True, timeout=_PROGRAM_S, check=False
    )
    words = (done.stdout or done.stderr).strip().splitlines() or ["says nothing"]
    # mksquashfs exits with 1 after -version in older releases
    ok = done.returncode == 0 or program == "mksquashfs"
    return Check(program, ok, words[0], "" if ok else cure)


def _namespaces() -> Check:
    try:
        initramfs.require_chroot()
    except EnvironmentLacking as error:
        return Check("user namespaces", False, error.message, error.cure or "")
    return Check("user namespaces", True, "root" if os.geteuid() == 0 else "allowed")


def _keyring(*, needed: bool) -> Check:
    directories = (Path("/usr/share/keyrings"), Path("/etc/apt/trusted.gpg.d"))
    found = [p for d in directories if d.is_dir() for p in d.glob("debian-archive-*")]
    if found:
        return Check("Debian's keys", True, str(found[0]))
    cure = "install the package debian-archive-keyring (make setup does)"
    return Check("Debian's keys", False if needed else None, "not installed", cure)


def _disk(*, needed: bool) -> Check:
    place = image.cache_dir()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free / 2**30:.1f} GiB free in {place}"
    if not os.access(place, os.W_OK):
        return Check("cache", False, f"{place} is not writable", "set XDG_CACHE_HOME")
    if needed and free < _IMAGE_NEEDS_BYTES:
        return Check("cache", False, detail, "the image needs 3 GiB; set XDG_CACHE_HOME")
    return Check("cache", True, detail)


def _kvm(built: bool) -> Check:
    if not built:
        return Check("KVM", None, "tried once the image is built (make image)")
    try:
        verdict = kvm_verdict(prepare(Options(), silent), silent)
    except EnvironmentLacking as error:
        return Check("KVM", None, error.message)
    detail = verdict.reason if verdict.usable else f"not used: {verdict.reason}; TCG emulates"
    return Check("KVM", True if verdict.usable else None, detail)


def _boots(built: bool) -> Check:
    if not built:
        return Check("lab", None, "no image yet", "build it with: make image")
    try:
        with Lab.boot(Options(fresh=True), progress=silent) as lab:
            lab.run(["true"], timeout_s=20, check=True)
            detail = f"booted in {lab.boot_s:.1f} s, {lab.acceleration}, {lab.kernel_release}"
            return Check("lab", True, detail)
    except BridgeError as error:
        return Check("lab", False, error.message, error.cure or "")
