"""The project tree: what of it the guest sees, and how it is brought up to date."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import bridge
from bridge.lab.channel import Channel, Deadline, expect_ok, have_tree
from bridge.lab.guest.frames import CHUNK

PROJECT = "/project"
_PARTS = ("bridge", "netns", "lua", "kmod")
_SKIP_DIRS = {
    ".git", ".venv", "build", "dist", "node_modules", "__pycache__",
    ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis",
}  # fmt: skip
_SKIP_SUFFIXES = (".pyc", ".o", ".cmd", ".egg-info")


def project_root() -> Path:
    """Return the directory that holds the bridge's own packages."""
    return Path(bridge.__file__).resolve().parents[1]


def scan(root: Path) -> dict[str, str]:
    """Return path and meta (mode, size, mtime) of the files the guest shall see.

    Where ``root`` is not a source tree but a place packages are installed to,
    only the bridge's own parts of it count.
    """
    if (root / "pyproject.toml").exists():
        return dict(_walk(root, ""))
    return {
        path: meta
        for part in _PARTS
        if (root / part).is_dir()
        for path, meta in _walk(root / part, f"{part}/")
    }


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, str]]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _SKIP_DIRS and not entry.name.endswith(_SKIP_SUFFIXES):
                    yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif not entry.name.endswith(_SKIP_SUFFIXES):
                meta = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(meta.st_mode) or stat.S_ISLNK(meta.st_mode):
                    mode = stat.S_IMODE(meta.st_mode)
                    yield f"{prefix}{entry.name}", f"{mode:o} {meta.st_size} {meta.st_mtime_ns}"


def synchronise(channel: Channel, root: Path, directory: str, deadline: Deadline) -> int:
    """Make ``directory`` in the guest a mirror of ``root``; return the files sent."""
    want = scan(root)
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
