"""Trees of the host's that the guest mirrors, and how a mirror is brought up to date.

The project's own is always there; it is what the guest's Python imports the bridge from.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bridge import parts
from bridge.lab.channel import Channel, Deadline, expect_ok, have_tree
from bridge.lab.guest.frames import CHUNK

PROJECT = "/project"
_PACKAGES = ("bridge", "netns")
_SKIP_DIRS = {
    ".git", ".venv", "build", "dist", "node_modules", "__pycache__",
    ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis",
}  # fmt: skip
_SKIP_SUFFIXES = (".pyc", ".o", ".cmd", ".egg-info")


def project_root() -> Path:
    """Return the directory that holds the bridge's own packages."""
    return parts.PROJECT


def scan(root: Path) -> dict[str, str]:
    """Return path and meta (mode, size, mtime) of the files below ``root``.

    Where that is the place that the bridge was installed to, only its own packages
    count: others may be there too, for another Python than the guest's.
    """
    if root != parts.PROJECT or not parts.installed():
        return dict(_walk(root, ""))
    return {
        path: meta
        for package in _PACKAGES
        for path, meta in _walk(root / package, f"{package}/")
    }


def describe(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return path and meta of these files; what is not there, or is no file, is left out."""
    found = ((path, _meta(root / path)) for path in paths)
    return {path: meta for path, meta in found if meta}


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, str]]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _SKIP_DIRS and not entry.name.endswith(_SKIP_SUFFIXES):
                    yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif not entry.name.endswith(_SKIP_SUFFIXES) and (meta := _meta(entry)):
                yield f"{prefix}{entry.name}", meta


def _meta(entry: os.DirEntry[str] | Path) -> str | None:
    """Return mode, size and mtime of a file or link, None for anything else."""
    try:
        meta = entry.stat(follow_symlinks=False)
    except OSError:
        return None  # it has just gone
    if not (stat.S_ISREG(meta.st_mode) or stat.S_ISLNK(meta.st_mode)):
        return None
    return f"{stat.S_IMODE(meta.st_mode):o} {meta.st_size} {meta.st_mtime_ns}"


def synchronise(
    channel: Channel, root: Path, directory: str, want: Mapping[str, str], deadline: Deadline
) -> int:
    """Make ``directory`` in the guest a mirror of what of ``root`` is wanted.

    ``want`` is what scan() or describe() returned. Returns the number of files sent.
    """
    have = have_tree(channel, directory, deadline)
    changed = [path for path, meta in want.items() if have.get(path) != meta]
    for path in have.keys() - want.keys():
        channel.send("GONE", os.fsencode(path))
    for path in changed:
        _send_file(channel, root / path, path, want[path])
    channel.send("END")
    expect_ok(channel, deadline)
    return len(changed)


def _send_file(channel: Channel, local: Path, path: str, meta: str) -> None:
    try:
        if local.is_symlink():
            target = os.fsencode(local.readlink())
            channel.send("LINK", os.fsencode(path), target, meta.encode())
            return
        with local.open("rb") as file:
            channel.send("FILE", os.fsencode(path), meta.encode())
            while data := file.read(CHUNK):
                channel.send("DATA", data)
    except FileNotFoundError:
        return  # vanished since the scan; the next one notices
