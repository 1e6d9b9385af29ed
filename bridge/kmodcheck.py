"""Checks of the kernel module's sources, for `make check`.

The compiler with W=1 and sparse, against each supported kernel; checkpatch and
kernel-doc, from the distribution's package of the kernel's source; and that no
allocation goes past the tests of what happens without memory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bridge import module
from bridge.errors import LabError
from bridge.lab import image, recipe
from bridge.lab.initramfs import chroot_argv
from bridge.lab.progress import to_stderr
from bridge.parts import PROJECT

SCRIPTS = ("scripts/checkpatch.pl", "scripts/spelling.txt", "scripts/const_structs.checkpatch",
           "scripts/kernel-doc")  # fmt: skip
CHECKPATCH = ("--no-tree", "--terse", "--quiet", "--file", "--max-line-length=100",
              "--ignore", "FILE_PATH_CHANGES,SPDX_LICENSE_TAG,LINUX_VERSION_CODE")  # fmt: skip
ALLOCATOR = re.compile(
    r"(?<!lunatik_)\b(k[mzc]alloc\w*|krealloc\w*|k(?:mem|str)n?dup\w*|kv?asprintf|"
    r"kv\w*alloc\w*|v[mz]alloc\w*|alloc_percpu\w*|kmem_cache_alloc\w*|"
    r"\w*alloc_workqueue|(?:genl|n)lmsg_new)\("
)
FAILING = re.compile(r"lunatik_memory_fails\(\)")


def main() -> int:
    """Run every check; return 1 where one has found something."""
    problems = []
    for suite in recipe.available():
        kernel = module.Kernel.of_image(image.ensure(recipe.load(suite)))
        to_stderr(f"compiler and sparse, Linux {kernel.release}")
        problems += module.warnings(kernel)
    sysroot = image.ensure().sysroot
    scripts = _scripts(sysroot)
    to_stderr("checkpatch and kernel-doc")
    problems += _checkpatch(sysroot, scripts) + _kernel_doc(sysroot, scripts)
    problems += untested_allocations(module.SOURCES)
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    return 1 if problems else 0


def untested_allocations(sources: Path) -> list[str]:
    """Return the places below ``sources`` that allocate and cannot be made to fail.

    That is, a call of an allocator that neither is in memory.h nor asks
    lunatik_memory_fails() in its own line or the one before.
    """
    found = []
    for path in sorted(sources.glob("*.c")):
        before = ""
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            call = ALLOCATOR.search(line)
            if call and not line.lstrip().startswith("*") and not FAILING.search(before + line):
                name = call[1]
                found.append(
                    f"{path.name}:{number}: {name}() cannot be made to fail by a test; "
                    f"use one of the functions in memory.h"
                )
            before = line
    return found


def _scripts(sysroot: Path) -> Path:
    """Fetch the kernel's scripts into the sysroot, once; return their place in it."""
    place = sysroot / "usr/src/kernel-scripts"
    if not (place / SCRIPTS[-1]).exists():
        to_stderr("fetching the kernel's source for checkpatch")
        members = " ".join(f"linux-source-6.12/{name}" for name in SCRIPTS)
        script = f"""
        set -e; cd "$(mktemp -d)"
        apt-get -qq update; apt-get -qq -o APT::Sandbox::User=root download linux-source-6.12
        dpkg-deb --fsys-tarfile linux-source-6.12_*.deb |
            tar -xO ./usr/src/linux-source-6.12.tar.xz > source.tar.xz
        tar -xf source.tar.xz {members}
        mkdir -p /usr/src/kernel-scripts
        cp -r linux-source-6.12/scripts /usr/src/kernel-scripts/; rm -rf "$PWD"
        """
        done = _inside(sysroot, ["sh", "-c", script])
        if done.returncode:
            raise LabError(f"fetching the kernel's source failed:\n{done.stderr}")
    return place


def _checkpatch(sysroot: Path, scripts: Path) -> list[str]:
    checker = f"/{scripts.relative_to(sysroot)}/scripts/checkpatch.pl"
    found = _over_sources(sysroot, ["perl", checker, *CHECKPATCH])
    # The headers below port/ speak to Lua, in C's names and not in the kernel's.
    return [
        line
        for line in found
        if re.search(r": (WARNING|ERROR):", line) and not re.match(r"kmod/port/\w+\.h", line)
    ]


def _kernel_doc(sysroot: Path, scripts: Path) -> list[str]:
    checker = f"/{scripts.relative_to(sysroot)}/scripts/kernel-doc"
    return [
        line
        for line in _over_sources(sysroot, ["perl", checker, "-none", "-Werror"])
        if "warning" in line or "error" in line
    ]


def _over_sources(sysroot: Path, argv: list[str]) -> list[str]:
    """Run a checker inside the sysroot over the C files; return what it says."""
    with TemporaryDirectory(dir=sysroot / "tmp") as scratch:
        files = []
        for top in (module.SOURCES, module.SABOTAGE):
            for source in sorted(top.rglob("*.[ch]")):
                name = source.relative_to(PROJECT)
                copy = Path(scratch) / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(source.read_bytes())
                files.append(f"/{copy.relative_to(sysroot)}")
        done = _inside(sysroot, [*argv, *files])
    prefix = f"/tmp/{Path(scratch).name}/"  # noqa: S108 - a path inside the sysroot
    return [line.replace(prefix, "") for line in (done.stdout + done.stderr).splitlines()]


def _inside(sysroot: Path, argv: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        [*chroot_argv(sysroot), *argv],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


if __name__ == "__main__":
    sys.exit(main())
