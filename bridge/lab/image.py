"""The guest's root: built once per recipe, cached, shared by every lab.

An image is a directory in the cache:

    sysroot/        the whole root; the kernel module is built in it
    root.squashfs   what the guest boots from
    vmlinux         its kernel, uncompressed
    release         `uname -r` of that kernel
    initramfs-*     first user space (see initramfs.py)

It is built beside its final place and renamed into it, so it is whole or not
there at all; a lock keeps concurrent builders apart.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import EnvironmentLacking, LabError
from bridge.lab import recipe as recipes
from bridge.lab.kernel import extract_vmlinux
from bridge.lab.progress import Progress, step, to_stderr
from bridge.lab.recipe import Recipe

_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "tar": "tar",
    "setpriv": "util-linux",
}


@dataclass(frozen=True, slots=True)
class Image:
    """A built image; ``release`` is its kernel's `uname -r`."""

    directory: Path
    release: str

    @property
    def sysroot(self) -> Path:
        """The unpacked root, with compiler and kernel headers."""
        return self.directory / "sysroot"

    @property
    def squashfs(self) -> Path:
        """The guest's read-only root."""
        return self.directory / "root.squashfs"

    @property
    def vmlinux(self) -> Path:
        """The guest's kernel, an ELF with a PVH entry."""
        return self.directory / "vmlinux"

    @property
    def modules(self) -> Path:
        """The kernel's modules, as in /lib/modules/RELEASE."""
        return self.sysroot / "usr/lib/modules" / self.release


def cache_dir() -> Path:
    """Return the user's cache directory of this tool ($XDG_CACHE_HOME is honoured)."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "lunatik-bridge"


def image_dir(recipe: Recipe) -> Path:
    """Return where the image of ``recipe`` is, or would be."""
    return cache_dir() / f"image-{recipe.suite}-{recipe.key}"


def find(recipe: Recipe) -> Image | None:
    """Return the cached image of ``recipe``, None where it is not built yet."""
    directory = image_dir(recipe)
    try:
        return Image(directory, (directory / "release").read_text().strip())
    except FileNotFoundError:
        return None


def ensure(recipe: Recipe | None = None, progress: Progress = to_stderr) -> Image:
    """Return the image of ``recipe`` (the default suite's), building it if need be.

    Raises EnvironmentLacking where a program or the network is missing and
    LabError where the build fails. Takes minutes the first time.
    """
    wanted = recipe or recipes.load()
    if image := find(wanted):
        return image
    target = image_dir(wanted)
    with builder_lock(target, progress):
        if image := find(wanted):  # another builder was faster
            return image
        need_programs()
        with building(target) as partial:
            release = _build(wanted, partial, progress)
    return Image(target, release)


def clean_leftovers() -> list[str]:
    """Remove what killed builds left in the cache; return what was removed."""
    removed = []
    for partial in filter(Path.is_dir, sorted(cache_dir().glob(".building-*"))):
        with (cache_dir() / f"{partial.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # somebody is building it right now
            if partial.is_dir():
                remove_tree(partial)
                removed.append(str(partial))
    return removed


def remove_tree(path: Path) -> None:
    """Remove a directory, read-only subdirectories included."""
    for parent, directories, _ in os.walk(path):
        for name in directories:
            child = Path(parent) / name
            if not child.is_symlink():
                child.chmod(0o755)
    shutil.rmtree(path)


def _partial(target: Path) -> Path:
    return target.with_name(f".building-{target.name}")


@contextmanager
def builder_lock(target: Path, progress: Progress) -> Iterator[None]:
    """Keep other processes from building ``target`` meanwhile, waiting for them first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{_partial(target).name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that is building {target.name} ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Give a directory to build in, which becomes ``target`` if the block succeeds.

    Hold builder_lock() around it. What a killed build left there is removed first.
    """
    partial = _partial(target)
    if partial.exists():
        remove_tree(partial)
    partial.mkdir()
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        remove_tree(partial)
        raise


def _build(recipe: Recipe, partial: Path, progress: Progress) -> str:
    """Build an image in ``partial``; return its kernel's release."""
    with step(progress, f"image of Debian {recipe.suite}, packages"):
        bootstrap(recipe, partial)
    release = _release(partial / "sysroot")
    with step(progress, f"image of Debian {recipe.suite}, kernel {release}"):
        _uncompress_kernel(partial, release)
    with step(progress, f"image of Debian {recipe.suite}, squashfs"):
        _squash(recipe, partial)
    (partial / "release").write_text(f"{release}\n")
    return release


def need_programs() -> None:
    """Raise EnvironmentLacking where a program that builds images is missing."""
    missing = {program: pkg for program, pkg in _PROGRAMS.items() if not shutil.which(program)}
    if missing:
        raise EnvironmentLacking(
            f"building the image needs {', '.join(missing)}",
            cure=f"install the package {', '.join(sorted(set(missing.values())))}"
            " (make setup does)",
        )


def bootstrap(recipe: Recipe, partial: Path) -> None:
    """Have mmdebstrap stream the root as a tar, and unpack it into sysroot/.

    Raises LabError where that fails.
    """
    sysroot, log = partial / "sysroot", partial / "mmdebstrap.log"
    sysroot.mkdir()
    with log.open("wb") as log_file:
        maker = subprocess.Popen(
            tied(_mmdebstrap_argv(recipe)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=_mmdebstrap_env(partial),
        )
        # Device nodes cannot be made by an ordinary user; the guest has devtmpfs.
        unpack = [
            "tar",
            "-x",
            "-C",
            str(sysroot),
            "--exclude=./dev/*",
            "--delay-directory-restore",
        ]
        try:
            unpacked = subprocess.run(
                tied(unpack), stdin=maker.stdout, capture_output=True, check=False
            )
        finally:
            if maker.stdout:
                maker.stdout.close()
            made = maker.wait()
    if made != 0:
        raise LabError(
            "mmdebstrap failed:\n" + "".join(log.read_text().splitlines(keepends=True)[-12:]),
            cure="is the package mirror reachable? lunabridge doctor tells more",
        )
    if unpacked.returncode != 0:
        raise LabError(f"unpacking the image failed: {unpacked.stderr.decode()[-800:]}")
    log.unlink()


def tied(argv: Sequence[str]) -> list[str]:
    """Make ``argv`` end with this process, even when that is killed."""
    if threading.current_thread() is not threading.main_thread():
        return list(argv)  # the death signal follows the thread, not the process
    return ["setpriv", "--pdeathsig", "TERM", "--", *argv]


def _mmdebstrap_argv(recipe: Recipe) -> list[str]:
    customize = f'set -- "$1"; LAB_SOURCES={shlex.quote(" ".join(recipe.sources))}\n'
    return [
        "mmdebstrap",
        f"--variant={recipe.variant}",
        "--format=tar",
        "--aptopt=APT::Install-Recommends false",
        "--aptopt=Acquire::Languages none",
        *(f"--dpkgopt=path-exclude={path}" for path in recipe.unpack_exclude),
        f"--include={','.join(recipe.packages)}",
        f"--customize-hook={customize}{recipe.customize}",
        recipe.suite,
        "-",
    ]


def _mmdebstrap_env(partial: Path) -> dict[str, str]:
    """Keep root's scratch space where the next build finds and removes it.

    An ordinary user's mmdebstrap works under subordinate user ids that may not
    enter the home directory, so there it keeps its own choice.
    """
    # INITRD: no initrd of the distribution's own, the lab makes a smaller one.
    env = {**os.environ, "INITRD": "No"}
    if os.geteuid() == 0:
        scratch = partial / "tmp"
        scratch.mkdir()
        env["TMPDIR"] = str(scratch)
    return env


def _release(sysroot: Path) -> str:
    releases = sorted(path.name for path in (sysroot / "usr/lib/modules").iterdir())
    if len(releases) != 1:
        raise LabError(f"the image should hold one kernel, it holds {releases}")
    return releases[0]


def _uncompress_kernel(partial: Path, release: str) -> None:
    vmlinuz = partial / "sysroot/boot" / f"vmlinuz-{release}"
    (partial / "vmlinux").write_bytes(extract_vmlinux(vmlinuz))


def _squash(recipe: Recipe, partial: Path) -> None:
    exclude = ["-wildcards", "-e", *recipe.squash_exclude]
    mksquashfs(partial / "sysroot", partial / "root.squashfs", exclude)
    scratch = partial / "tmp"
    if scratch.exists():
        remove_tree(scratch)


def mksquashfs(source: Path, target: Path, extra: Sequence[str] = ()) -> None:
    """Pack a directory as a squashfs that the lab can mount; raises LabError."""
    argv = ["mksquashfs", str(source), str(target), "-comp", "lz4", "-all-root"]
    argv += ["-noappend", "-no-progress", "-no-xattrs", "-quiet", *extra]
    done = subprocess.run(tied(argv), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"mksquashfs failed: {(done.stderr or done.stdout)[-800:]}")


def remove_all() -> list[str]:
    """Remove every cached image and kernel; return what was removed."""
    removed = clean_leftovers()
    for directory in sorted([*cache_dir().glob("image-*"), *cache_dir().glob("kernel-*")]):
        remove_tree(directory)
        removed.append(str(directory))
    return removed
