"""The sanitizer kernel: Linux as in the default image, built to find its own bugs.

It is built here, once, from the distribution's source of the very version that the
image boots, one number changed, with recipes/sanitizer.config, by the compiler of a
Debian root of its own. The cache then holds

    kernel-sanitizer-KEY/
        bzImage             what the lab boots, with the image's root
        modules.squashfs    its /lib/modules/RELEASE: headers, for bcc
        release             `uname -r`
        sysroot/            where the kernel module is built for it
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bridge.errors import LabError
from bridge.lab import image, initramfs, recipe
from bridge.lab.image import Image
from bridge.lab.progress import Progress, silent, step, to_stderr
from bridge.lab.recipe import Recipe

CONFIG = Path(__file__).parent / "recipes" / "sanitizer.config"
# Raise it when what is built of the same sources changes.
_FORMAT = "1"
_SOURCE = "linux-source-6.12"
_PACKAGES = (
    "gcc", "make", "libc6-dev", "flex", "bison", "bc", "libelf-dev", "xz-utils", "perl-base",
    "kmod", "lz4",
)  # fmt: skip
# What the module is built with, of the kernel's tree; the rest is 2 GiB of objects.
_KEPT = ("Makefile", ".config", "Module.symvers", "include", "scripts", "tools/objtool/objtool",
         "arch/x86/Makefile", "arch/x86/include")  # fmt: skip
# For each allocation KASAN keeps who called, 64 functions deep. A recursive interpreter
# is called in so many ways that the place for them fills up, and the kernel says so;
# CONFIG_STACKDEPOT_MAX_FRAMES only has it find none of them again (both 6.12).
_CALLERS = (
    "mm/kasan/kasan.h", "#define KASAN_STACK_DEPTH 64\n", "#define KASAN_STACK_DEPTH 16\n",
)  # fmt: skip
_NEWS_S = 60.0
# The kernel's build reads and writes /dev/null all the time, and mmdebstrap's root,
# unpacked without device nodes, would give it an ordinary file.
_ENTER = 'touch "$1/dev/null" && mount --bind /dev/null "$1/dev/null" && exec chroot "$@"'
_TREE = "/usr/src/linux"


@dataclass(frozen=True, slots=True)
class SanitizerKernel:
    """A built sanitizer kernel; ``release`` is its `uname -r`."""

    directory: Path
    release: str

    @property
    def bzimage(self) -> Path:
        """The kernel, compressed.

        Started through the PVH entry of the ELF, it would compare a string with KASAN's
        instrumentation before there is a shadow to look at, and die.
        """
        return self.directory / "bzImage"

    @property
    def modules(self) -> Path:
        """Its /lib/modules/RELEASE, as a squashfs."""
        return self.directory / "modules.squashfs"

    @property
    def sysroot(self) -> Path:
        """A root with the compiler, and the kernel's tree where modules look for it."""
        return self.directory / "sysroot"


def find() -> SanitizerKernel | None:
    """Return the cached kernel that goes with the default image, None where there is none."""
    built = image.find(recipe.load())
    return _find(_directory(built)) if built else None


def ensure(progress: Progress = to_stderr) -> SanitizerKernel:
    """Return the sanitizer kernel that goes with the default image, building it if need be.

    Takes some twenty minutes on two CPUs, 3 GiB of disk, and leaves half of one.
    Raises EnvironmentLacking where a program or the network is missing, LabError where
    the build fails.
    """
    built = image.ensure(progress=progress)
    target = _directory(built)
    if kernel := _find(target):
        return kernel
    with image.builder_lock(target, progress):
        if kernel := _find(target):  # another builder was faster
            return kernel
        image.need_programs()
        with image.building(target) as partial:
            release = _build(_recipe(built), partial, progress)
    return SanitizerKernel(target, release)


def _find(directory: Path) -> SanitizerKernel | None:
    try:
        return SanitizerKernel(directory, (directory / "release").read_text().strip())
    except FileNotFoundError:
        return None


def _directory(built: Image) -> Path:
    facts = [_FORMAT, CONFIG.read_text(), *_CALLERS, *_PACKAGES, built.release]
    facts += [_version(built, package) for package in (f"linux-image-{built.release}", "gcc")]
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:12]
    return image.cache_dir() / f"kernel-sanitizer-{key}"


def _version(built: Image, package: str) -> str:
    """Return the version of a package that is installed in the image."""
    status = (built.sysroot / "var/lib/dpkg/status").read_text()
    stanza = re.search(
        rf"^Package: {re.escape(package)}\n(?:.+\n)*?Version: (.+)$", status, re.M
    )
    if stanza is None:
        raise LabError(f"the image {built.directory} holds no package {package}",
                       cure="lunabridge lab image --remove, then again")  # fmt: skip
    return stanza[1]


def _recipe(built: Image) -> Recipe:
    """Return what the root is made of in which the kernel is compiled."""
    version = _version(built, f"linux-image-{built.release}")
    packages = (*_PACKAGES, f"{_SOURCE}={version}")
    return replace(recipe.load(), packages=packages, sources=())


def _build(plan: Recipe, partial: Path, progress: Progress) -> str:
    """Build everything in ``partial``; return the kernel's release."""
    sysroot = partial / "sysroot"
    with step(progress, "sanitizer kernel, compiler and source"):
        image.bootstrap(plan, partial)
        _run(partial, "tar", "-C", "/usr/src", "-xf", f"/usr/src/{_SOURCE}.tar.xz")
        (sysroot / f"usr/src/{_SOURCE}").rename(sysroot / "usr/src/linux")
        _change(sysroot / "usr/src/linux", *_CALLERS)
    with step(progress, "sanitizer kernel, compilation (some twenty minutes on two CPUs)"):
        _configure(partial)
        _make(partial, f"-j{os.cpu_count() or 1}", "bzImage", "modules", progress=progress)
    with step(progress, "sanitizer kernel, packing"):
        return _pack(partial)


def _change(tree: Path, name: str, old: str, new: str) -> None:
    """Change one place in the kernel's source."""
    text = (tree / name).read_text()
    if text.count(old) != 1:
        raise LabError(
            f"this kernel's {name} does not say {old.strip()!r} once",
            cure="see what it says now, and adapt _CALLERS in bridge/lab/sanitizer.py",
        )
    (tree / name).write_text(text.replace(old, new))


def _configure(partial: Path) -> None:
    """Make .config, and see that everything asked for is in it."""
    tree = partial / "sysroot" / _TREE.lstrip("/")
    shutil.copyfile(CONFIG, tree / CONFIG.name)
    _make(partial, f"KCONFIG_ALLCONFIG={CONFIG.name}", "allnoconfig", progress=silent)
    lost = not_taken(CONFIG.read_text(), (tree / ".config").read_text())
    if lost:
        raise LabError(f"the kernel's configuration does not take {', '.join(lost)}")


def not_taken(wanted: str, config: str) -> list[str]:
    """Return the settings of ``wanted`` that a .config does not show."""
    have = set(config.splitlines())
    settings = [
        line for line in wanted.splitlines() if re.match(r"CONFIG_|# CONFIG_\w+ is", line)
    ]
    return [line for line in settings if line not in have]


def _pack(partial: Path) -> str:
    """Keep what is used of the built tree, where it is looked for; return the release."""
    tree = partial / "sysroot" / _TREE.lstrip("/")
    release = (tree / "include/config/kernel.release").read_text().strip()
    (tree / "arch/x86/boot/bzImage").rename(partial / "bzImage")
    modules = partial / "sysroot/usr/lib/modules" / release
    for name in _KEPT:
        place = modules / "build" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (tree / name).rename(place)
    shutil.rmtree(partial / "sysroot/usr/src")
    image.mksquashfs(
        modules, partial / "modules.squashfs", ["-e", "build/scripts", "build/tools"]
    )
    _log(partial).unlink()
    if (partial / "tmp").exists():
        image.remove_tree(partial / "tmp")
    (partial / "release").write_text(f"{release}\n")
    return release


def _make(partial: Path, *arguments: str, progress: Progress) -> None:
    """Run make in the kernel's tree, telling now and then how far it is."""
    _run(partial, "make", "-C", _TREE, *arguments, progress=progress)


def _run(partial: Path, *argv: str, progress: Progress = silent) -> None:
    """Run a command inside the root; raises LabError with the end of what it printed."""
    log = _log(partial)
    with log.open("ab") as output:
        runner = subprocess.Popen(
            _inside(partial / "sysroot", argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            while (status := _wait(runner)) is None:
                compiled = log.read_bytes().count(b"  CC  ")
                progress(f"sanitizer kernel, {compiled:,} files compiled ...")
        except BaseException:
            runner.terminate()
            runner.wait()
            raise
    if status != 0:
        initramfs.require_chroot()
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise LabError(
            f"{' '.join(argv)} ended with status {status} in the build root:\n{tail}"
        )


def _wait(runner: subprocess.Popen[bytes]) -> int | None:
    try:
        return runner.wait(_NEWS_S)
    except subprocess.TimeoutExpired:
        return None


def _inside(sysroot: Path, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs ``argv`` in the root, until this process ends."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    enter = ["unshare", *user, "--mount", "sh", "-c", _ENTER, "sh", str(sysroot)]
    return [*enter, *image.tied(argv)]


def _log(partial: Path) -> Path:
    return partial / "build.log"
