"""Of a user's repository, the guest gets what the tests may need, and no heap."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bridge.errors import UsageError
from bridge.parts import PROJECT
from bridge.testing import repository
from bridge.testing.repository import Repository


def _make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


HEAP = [".venv/pyvenv.cfg", ".venv/lib/a.py", "env/pyvenv.cfg", "env/lib/b.py",
        "__pycache__/c.pyc", "node_modules/d.js", ".tox/e"]  # fmt: skip


def _files(root: Path, *needed: str) -> list[str]:
    return Repository.at(root).files(root / name for name in needed)


def test_without_git_all_but_environments_and_caches_is_taken(tmp_path):
    _make(tmp_path, "test_a.py", "policies/p.lua", ".hidden", *HEAP)
    assert _files(tmp_path) == [".hidden", "policies/p.lua", "test_a.py"]


def test_with_git_it_is_what_git_has_or_would_add(tmp_path):
    _git(tmp_path, "init")
    _make(tmp_path, "tracked", "untracked", "data/ignored", "data/needed.py", *HEAP)
    (tmp_path / ".gitignore").write_text("data/\n")
    _git(tmp_path, "add", "tracked")
    assert _files(tmp_path, "data/needed.py") == [
        ".gitignore", "data/needed.py", "tracked", "untracked",
    ]  # fmt: skip


def test_what_git_has_below_the_rootdir_alone_is_taken(tmp_path):
    _git(tmp_path, "init")
    _make(tmp_path, "above", "sub/dir/test_a.py", "sub/b.py")
    assert _files(tmp_path / "sub") == ["b.py", "dir/test_a.py"]


def test_a_rootdir_that_git_ignores_as_a_whole_is_taken(tmp_path):
    _git(tmp_path, "init")
    _make(tmp_path, "scratch/test_a.py")
    (tmp_path / ".gitignore").write_text("scratch/\n")
    assert _files(tmp_path / "scratch") == ["test_a.py"]


def test_too_many_files_are_refused_with_a_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "MOST_FILES", 2)
    _make(tmp_path, "a", "b")
    assert _files(tmp_path) == ["a", "b"]
    _make(tmp_path, "c")
    with pytest.raises(UsageError, match=r"more than 2 files.*\n.*have git ignore"):
        _files(tmp_path)


def test_too_much_is_refused_and_the_largest_file_named(tmp_path):
    _make(tmp_path, "small")
    with (tmp_path / "large.pcap").open("wb") as file:
        file.truncate(repository.MOST_BYTES + 1)
    with pytest.raises(UsageError, match=r"more than 64 MiB.*large\.pcap, 64\.0 MiB.*\n.*git"):
        _files(tmp_path)


def test_the_projects_own_tree_is_there_anyway(tmp_path):
    own, other = Repository.at(PROJECT), Repository.at(tmp_path)
    assert (own.guest_root, own.is_mirrored) == ("/project", False)
    assert (other.guest_root, other.is_mirrored) == ("/repository", True)


def test_import_paths_in_the_repository_are_those_of_the_guest_too(tmp_path, monkeypatch):
    inside, environment = tmp_path / "src", tmp_path / ".venv" / "lib"
    monkeypatch.setattr("sys.path", ["", str(environment), str(inside), "/usr/lib/python3"])
    assert Repository.at(tmp_path).import_paths() == ["/repository/src"]
