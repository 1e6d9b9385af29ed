"""The repository that pytest was started in, and what of it the guest gets.

The guest sees pytest's rootdir, read-only: what git knows there or would take, or all
but environments and caches where there is no git. The project's own tree is a case by
itself, since the guest has it anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bridge import parts
from bridge.errors import UsageError
from bridge.lab import tree

GUEST_ROOT = "/repository"
MOST_FILES = 5_000
MOST_BYTES = 64 << 20

_NEVER = {
    ".git", ".hg", ".svn", ".venv", ".tox", ".nox", ".eggs", "node_modules",
    "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis",
}  # fmt: skip
_ENVIRONMENT = "pyvenv.cfg"  # is in each virtual environment, whatever its name (PEP 405)
_CURE = (
    "have git ignore what the tests do not need, or put them in a directory of their own"
    " with a pytest.ini, which makes it the rootdir"
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A rootdir; ``guest_root`` is where it is in the guest."""

    root: Path
    guest_root: str

    @classmethod
    def at(cls, root: Path) -> Repository:
        """Return the repository with that rootdir."""
        own = root.resolve() == parts.PROJECT and not parts.installed()
        return cls(root, tree.PROJECT if own else GUEST_ROOT)

    @property
    def is_mirrored(self) -> bool:
        """Whether it has to be brought to the guest."""
        return self.guest_root != tree.PROJECT

    def in_guest(self, path: Path) -> str | None:
        """Return where a path of the host's is in the guest, None where it is not."""
        if not path.is_relative_to(self.root):
            return None
        return str(Path(self.guest_root) / path.relative_to(self.root))

    def import_paths(self) -> list[str]:
        """Return, for the guest, where the host's Python imports from in the repository."""
        there = [self.in_guest(Path(entry).absolute()) for entry in sys.path if entry]
        return [entry for entry in there if entry and not _is_never(entry)]

    def files(self, needed: Iterable[Path]) -> list[str]:
        """Return the files that the guest gets, relative to the root.

        ``needed`` are there even if git ignores them. Raises UsageError where it is
        unreasonably much.
        """
        also = {str(path.relative_to(self.root)) for path in needed}
        known = _known_to_git(self.root)
        # A root that git ignores as a whole is one of which it knows nothing.
        found = _without_environments(known) if known else _walk(self.root, "")
        return sorted(_counted(self.root, found) | also)


def _is_never(path: str) -> bool:
    return not _NEVER.isdisjoint(Path(path).parts)


def _known_to_git(root: Path) -> list[str]:
    """Return the files that git has or would add below ``root``; none without git."""
    argv = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run([*argv, "--exclude-standard"], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _without_environments(names: list[str]) -> Iterator[str]:
    marks = [Path(name) for name in names if name.endswith(f"/{_ENVIRONMENT}")]
    tops = tuple(f"{mark.parent}/" for mark in marks)
    return (name for name in names if not name.startswith(tops) and not _is_never(name))


def _walk(directory: Path, prefix: str) -> Iterator[str]:
    with os.scandir(directory) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            yield f"{prefix}{entry.name}"
        elif entry.name not in _NEVER and not Path(entry.path, _ENVIRONMENT).exists():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")


def _counted(root: Path, names: Iterable[str]) -> set[str]:
    """Return the names; raises UsageError as soon as they are too many or too large."""
    sizes: dict[str, int] = {}
    total = 0
    for name in names:
        sizes[name] = _size(root / name)
        total += sizes[name]
        if len(sizes) > MOST_FILES:
            raise UsageError(
                f"{root} has more than {MOST_FILES:,} files, too many for the lab", cure=_CURE
            )
        if total > MOST_BYTES:
            largest = max(sizes, key=lambda name: sizes[name])
            raise UsageError(
                f"{root} has more than {MOST_BYTES >> 20} MiB, too much for the lab"
                f" (its largest file: {largest}, {sizes[largest] / (1 << 20):.1f} MiB)",
                cure=_CURE,
            )
    return set(sizes)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0  # git knows it, but it is not there
