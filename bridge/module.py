"""Building lunatik.ko, for the lab's kernel and for the one that runs.

The module is built once for a kernel release and a state of its sources, in the
cache directory, and reused until either changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bridge.errors import EnvironmentLacking, LabError, ModuleError
from bridge.lab import Lab, image, recipe, sanitizer
from bridge.lab.initramfs import chroot_argv
from bridge.parts import PROJECT, part

SOURCES = part("kmod")
LUA_ROOT = part("lua")
SABOTAGE = PROJECT / "tests" / "sabotage"  # not there where the bridge is installed
# Where the guest finds what the host built.
GUEST_DIRECTORY = "/run/lunatik"
LOCK = "module.lock"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a module is built against: headers below ``sysroot``, for ``release``.

    ``lua_tarball`` is the upstream tarball of the lua5.4 source package.
    """

    sysroot: Path
    release: str
    lua_tarball: Path

    @classmethod
    def of_image(cls, lab_image: image.Image) -> Kernel:
        """The kernel of a lab image; Lua is the default image's, whatever the kernel."""
        lua = _find_lua(image.ensure().sysroot)
        return cls(lab_image.sysroot, lab_image.release, lua)

    @classmethod
    def of_release(cls, release: str) -> Kernel:
        """The cached kernel of the lab's that is ``release``.

        Raises LabError where there is none, as after the image was made anew.
        """
        for suite in recipe.available():
            found = image.find(recipe.load(suite))
            if found and found.release == release:
                return cls.of_image(found)
        if (other := sanitizer.find()) and other.release == release:
            return cls(other.sysroot, release, _find_lua(image.ensure().sysroot))
        raise LabError(
            f"no image holds the headers of the lab's kernel {release}",
            cure="end this lab and start another",
        )

    @classmethod
    def running(cls) -> Kernel:
        """The kernel this machine runs.

        Raises EnvironmentLacking without its headers or Lua's sources.
        """
        release = os.uname().release
        if not Path(f"/lib/modules/{release}/build/Makefile").exists():
            raise EnvironmentLacking(
                f"the headers of the running kernel {release} are not installed",
                cure=f"apt-get install linux-headers-{release}, or leave out --native",
            )
        return cls(Path("/"), release, _find_lua(Path("/")))


def build(kernel: Kernel, progress: Progress = lambda text: None) -> Path:
    """Build lunatik.ko and the test-only sabotage module; return their directory.

    Raises EnvironmentLacking without a compiler, ModuleError when the build fails.
    """
    target = image.cache_dir() / f"module-{kernel.release}-{_fingerprint(kernel)}"
    with _building(target):
        if not (target / "lunatik.ko").exists():
            progress(f"building lunatik.ko for Linux {kernel.release}")
            _build_into(kernel, target)
    return target


def clean_leftovers() -> list[str]:
    """Remove what killed builds left in the cache and the images; return what went."""
    cache = image.cache_dir()
    copies = [
        path
        for path in cache.glob("*-*/sysroot/tmp/build-*")
        if not Path("/proc", path.name.removeprefix("build-")).exists()
    ]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that no partial build is anybody's
        left = sorted([*cache.glob("partial-module-*"), *copies])
        for path in left:
            shutil.rmtree(path)
    return [str(path) for path in left]


def warnings(kernel: Kernel) -> list[str]:
    """Build with W=1 and sparse; return what they say of this project's files.

    Needs sparse in the sysroot. Raises as build() does.
    """
    with TemporaryDirectory(prefix="lunabridge-") as scratch:
        directory = Path(scratch) / "kmod"
        _copy_sources(kernel, directory)
        output = _run_make(kernel, directory, "W=1", "C=2")
    found = [line for line in output.splitlines() if re.search(r"\b(warning|error):", line)]
    return [line for line in found if "/kmod/build/lua/" not in line]


def _find_lua(sysroot: Path) -> Path:
    tarballs = sorted((sysroot / "usr/src/lua").glob("lua5.4_*.orig.tar.*"))
    if not tarballs:
        raise EnvironmentLacking(
            f"no Lua source package in {sysroot / 'usr/src/lua'}",
            cure="there, as root: apt-get source --download-only lua5.4",
        )
    return tarballs[0]


def _source_files() -> dict[str, Path]:
    """Return the files a build needs, by their names in the project's tree.

    The sabotage module, which the project's own tests need, is among them in a checkout.
    """
    found = {
        f"{name}/{path.relative_to(top).as_posix()}": path
        for name, top in (("kmod", SOURCES), ("tests/sabotage", SABOTAGE))
        for path in top.rglob("*")
        if path.is_file() and "build" not in path.relative_to(top).parts
    }
    return dict(sorted(found.items()))


def _fingerprint(kernel: Kernel) -> str:
    # Two kernels of one release may differ in their configuration, not in their place.
    digest = hashlib.sha256(str(kernel.sysroot).encode())
    for name, path in _source_files().items():
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _building(target: Path) -> Iterator[None]:
    """Keep out other builders, and remove what older sources left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        release = target.name.rsplit("-", 1)[0]
        kept = sorted(target.parent.glob(f"{release}-*"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-3]:
            if old != target:
                shutil.rmtree(old)


def _build_into(kernel: Kernel, target: Path) -> None:
    partial = target.with_name(f"partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _copy_sources(kernel, partial)
        _run_make(kernel, partial)
        built = list(partial.rglob("lunatik*.ko"))
        (partial / "out").mkdir()
        for module in built:
            shutil.copyfile(module, partial / "out" / module.name)
        (partial / "out").rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_sources(kernel: Kernel, directory: Path) -> None:
    for name, source in _source_files().items():
        copy = directory / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    shutil.copyfile(kernel.lua_tarball, directory / kernel.lua_tarball.name)


def _run_make(kernel: Kernel, directory: Path, *settings: str) -> str:
    """Build both modules in ``directory``; return what was printed."""
    with _visible(kernel, directory) as (prefix, inside):
        headers = f"/lib/modules/{kernel.release}/build"
        tarball = f"{inside}/{kernel.lua_tarball.name}"
        jobs = f"-j{os.cpu_count() or 1}"
        kmod = ["make", jobs, "-C", f"{inside}/kmod", f"KDIR={headers}", f"LUA_SRC={tarball}"]
        output = _run([*prefix, *kmod, f"BUILD={inside}/kmod/build", *settings])
        # Debug information is nine tenths of the file, and nothing here reads it.
        _run([*prefix, "strip", "--strip-debug", f"{inside}/kmod/build/lunatik.ko"])
        if (directory / "tests/sabotage/Kbuild").exists():
            symbols = f"KBUILD_EXTRA_SYMBOLS={inside}/kmod/build/Module.symvers"
            sabotage = ["make", "-C", headers, f"M={inside}/tests/sabotage", symbols, "modules"]
            output += _run([*prefix, *sabotage, *settings])
    return output


@contextmanager
def _visible(kernel: Kernel, directory: Path) -> Iterator[tuple[list[str], str]]:
    """Where the compiler of ``kernel`` sees ``directory``, and how to start it."""
    if kernel.sysroot == Path("/"):
        yield [], str(directory)
        return
    inside = kernel.sysroot / "tmp" / f"build-{os.getpid()}"
    shutil.copytree(directory, inside)
    try:
        yield chroot_argv(kernel.sysroot), f"/tmp/{inside.name}"  # noqa: S108
        shutil.copytree(inside, directory, dirs_exist_ok=True)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _run(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise EnvironmentLacking(
            f"{argv[0]} is not installed", cure="apt-get install make gcc"
        ) from error
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise ModuleError(
            f"building the module failed with status {done.returncode}",
            cure="the compiler's output is above",
        )
    return done.stdout + done.stderr


def install(lab: Lab, progress: Progress = lambda text: None) -> None:
    """Build the modules for the kernel of ``lab`` and put them into the guest.

    They are then in GUEST_DIRECTORY, not loaded. Raises as build() does, LabError.
    """
    directory = build(Kernel.of_release(lab.kernel_release), progress)
    for module in sorted(directory.glob("*.ko")):
        lab.put(module, f"{GUEST_DIRECTORY}/{module.name}")
