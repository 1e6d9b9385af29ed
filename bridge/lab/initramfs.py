"""The first user space: busybox, a few kernel modules, init and the agent.

A cpio archive in the `newc` format (Documentation/driver-api/early-userspace/
buffer-format.rst), written without time stamps so that equal input gives equal
bytes. It is cached under the hash of its content's sources.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import EnvironmentLacking, LabError
from bridge.lab.image import Image
from bridge.lab.recipe import Recipe

_HERE = Path(__file__).parent
_GUEST = _HERE / "guest"
_BOOT = _GUEST / "boot.sh"
_KEEP_S = 86400
_DIRECTORIES = ("agent", "agent/guest", "bin", "dev", "lower", "modules", "root", "rw")


# Module names and sources in, names and .pyc files (in hex) out. The twelve zero
# bytes say: made from a source of unknown time and size, do not look for it.
_COMPILER = """
import importlib.util, json, marshal, sys
header = importlib.util.MAGIC_NUMBER + bytes(12)
compiled = {
    name: (header + marshal.dumps(compile(source, name + ".py", "exec"))).hex()
    for name, source in json.load(sys.stdin).items()
}
json.dump(compiled, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or link of the archive."""

    name: str
    mode: int
    content: bytes = b""


def build(image: Image, recipe: Recipe, modules: Path | None) -> Path:
    """Return the initramfs for ``image``, making it where it is not cached.

    ``modules`` is the module directory of the kernel to be booted; a boot module
    that is not there is taken to be built into the kernel.
    """
    directory = modules or Path("/nonexistent")
    path = image.directory / f"initramfs-{_key(recipe, directory)}.cpio"
    if path.exists():
        return path
    content = b"".join(archive(_entries(image, recipe, directory)))
    with tempfile.NamedTemporaryFile(dir=image.directory, prefix=".initramfs-") as partial:
        partial.write(content)
        partial.flush()
        # A hard link, so that a killed build leaves no half-written archive.
        scratch = Path(f"{partial.name}.whole")
        os.link(partial.name, scratch)
        scratch.replace(path)
    _forget_old(image.directory)
    return path


def _forget_old(directory: Path) -> None:
    """Remove archives of earlier versions of the tool, a day after they were made."""
    for path in directory.glob("initramfs-*.cpio"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _KEEP_S:
                path.unlink()


def agent_key() -> str:
    """Return a hash of the agent and of init: what the guest side is made of."""
    sources = [_BOOT, *_agent_sources()]
    content = b"\0".join(path.read_bytes() for path in sources)
    return hashlib.sha256(content).hexdigest()[:12]


def _agent_sources() -> list[Path]:
    return sorted(_GUEST.glob("*.py"))


def _key(recipe: Recipe, modules: Path) -> str:
    seed = f"{agent_key()} {recipe.key} {modules} {Path(__file__).read_text()}"
    return hashlib.sha256(seed.encode()).hexdigest()[:12]


def _entries(image: Image, recipe: Recipe, modules: Path) -> Iterator[Entry]:
    for name in _DIRECTORIES:
        yield Entry(name, 0o040755)
    busybox = (image.sysroot / "usr/bin/busybox").read_bytes()
    yield Entry("bin/busybox", 0o100755, busybox)
    for applet in ("sh", *_applets()):
        yield Entry(f"bin/{applet}", 0o120777, b"busybox")
    yield Entry("init", 0o100755, _BOOT.read_bytes())
    for name, code in _compile_agent(image).items():
        yield Entry(f"agent/guest/{name}.pyc", 0o100644, code)
    for number, path in enumerate(boot_modules(modules, recipe.boot_modules)):
        name = f"modules/{number:02}-{path.name.partition('.')[0]}.ko"
        yield Entry(name, 0o100644, _decompress(path))


def _applets() -> list[str]:
    """Commands that init uses; busybox finds its applet by the name it is called."""
    return ["chmod", "cp", "ifconfig", "insmod", "ln", "mkdir", "mount", "poweroff",
            "switch_root", "uname"]  # fmt: skip


def _compile_agent(image: Image) -> dict[str, bytes]:
    """Compile the agent by the guest's own Python, which saves the guest the work."""
    sources = {path.stem: path.read_text() for path in _agent_sources()}
    argv = [*chroot_argv(image.sysroot), "/usr/bin/python3", "-I", "-c", _COMPILER]
    done = subprocess.run(
        argv, input=json.dumps(sources), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        require_chroot()
        raise LabError(f"compiling the agent failed: {done.stderr}")
    compiled: dict[str, str] = json.loads(done.stdout)
    return {name: bytes.fromhex(code) for name, code in compiled.items()}


def chroot_argv(sysroot: Path) -> list[str]:
    """Return the command prefix that runs a program inside ``sysroot``."""
    chroot = shutil.which("chroot") or "/usr/sbin/chroot"
    if os.geteuid() == 0:
        return [chroot, str(sysroot)]
    return ["unshare", "--map-root-user", "--mount", chroot, str(sysroot)]


def require_chroot() -> None:
    """Raise EnvironmentLacking where this user cannot run programs inside a root."""
    if os.geteuid() == 0:
        return
    unshare = ["unshare", "--map-root-user", "--mount", "true"]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EnvironmentLacking(
            f"this user may not make user namespaces: {done.stderr.strip()}",
            cure="allow it (sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            " on Ubuntu, kernel.unprivileged_userns_clone=1 on Debian), or be root",
        )


def boot_modules(directory: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the files of ``wanted`` modules after those they depend on.

    ``directory`` is a /lib/modules/RELEASE with its modules.dep. Modules it does
    not list are built into the kernel.
    """
    depends = _read_depends(directory)
    ordered: dict[Path, None] = {}

    def add(path: str) -> None:
        for dependency in depends[path]:
            add(dependency)
        ordered.setdefault(directory / path)

    by_name = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in depends}
    for name in wanted:
        if name in by_name:
            add(by_name[name])
    return list(ordered)


def _read_depends(directory: Path) -> dict[str, list[str]]:
    listing = directory / "modules.dep"
    if not listing.exists():
        return {}
    lines = (line.partition(":") for line in listing.read_text().splitlines())
    return {path: rest.split() for path, _, rest in lines}


def _decompress(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".ko":
        return content
    raise LabError(f"{path.name}: unknown module compression")


def archive(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the archive piece by piece."""
    for inode, entry in enumerate(entries, start=1):
        yield _record(entry, inode)
    yield _record(Entry("TRAILER!!!", 0), 0)


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = [inode, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(name), 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(header) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
