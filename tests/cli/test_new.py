"""`lunabridge new` writes a policy and a test that passes, and overwrites nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge import cli
from bridge.module import PROJECT


def test_both_files_are_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["new", "mine"]) == 0
    assert capsys.readouterr().out.splitlines() == ["mine.lua", "test_mine.py"]
    assert "netfilter.register" in Path("mine.lua").read_text()
    test = Path("test_mine.py").read_text()
    assert '"mine.lua"' in test
    assert "NAME" not in test


def test_the_directory_is_made(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "policies"
    assert cli.run(["new", "mine.lua", "--dir", str(directory)]) == 0
    assert sorted(path.name for path in directory.iterdir()) == ["mine.lua", "test_mine.py"]


@pytest.mark.parametrize("there", ["mine.lua", "test_mine.py"])
def test_what_is_there_is_kept_and_nothing_is_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    (tmp_path / there).write_text("precious")
    assert cli.run(["new", "mine", "--dir", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"
    err = capsys.readouterr().err
    assert str(tmp_path / there) in err
    assert "--dir" in err


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("my-policy", "my_policy"),
        ("a/b", "a_b"),
        ("9lives", "my_policy"),
        ("é", "my_policy"),
        ("", "my_policy"),
        ("x" * 64, "x" * 63),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_with_a_better_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, better: str
) -> None:
    assert cli.run(["new", name, "--dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(f"lunabridge new {better}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_directory_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.run(["new", "mine", "--dir", str(tmp_path / "file" / "below")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.fixture
def scaffold(tmp_path: Path) -> Path:
    assert cli.run(["new", "mine", "--dir", str(tmp_path)]) == 0
    return tmp_path


@pytest.fixture
def outcome(scaffold: Path) -> Callable[[], tuple[int, str]]:
    """Run the scaffold's test on this kernel, as its owner does; return what came out."""

    def run() -> tuple[int, str]:
        plugin = ["-p", "bridge.testing.plugin", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *plugin, "--native", "-q", "test_mine.py"],
            cwd=scaffold,
            # The plugin is named, so that it does not matter whether it is installed.
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    return run


@pytest.mark.kernel
def test_the_test_that_is_written_passes(outcome: Callable[[], tuple[int, str]]) -> None:
    status, printed = outcome()
    assert status == 0, printed
    assert "4 passed" in printed


@pytest.mark.kernel
def test_the_test_that_is_written_fails_for_a_policy_that_drops_nothing(
    scaffold: Path, outcome: Callable[[], tuple[int, str]]
) -> None:
    policy = scaffold / "mine.lua"
    text = policy.read_text()
    assert "return DROP" in text
    policy.write_text(text.replace("return DROP", "return ACCEPT"))
    status, printed = outcome()
    assert status == 1
    assert "2 failed, 2 passed" in printed
