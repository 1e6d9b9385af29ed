"""What the README shows is what happens: its commands and examples are run here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.module import PROJECT

README = (PROJECT / "README.md").read_text()
LUNABRIDGE = str(Path(sys.executable).with_name("lunabridge"))


def _block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    assert found, f"the README has no block of {language}"
    return found[1]


def _run(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300, **options
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_every_command_shown_is_tried_here():
    shown = set(
        re.findall(r"^    (make \w+|\.venv/bin/lunabridge .*?)(?:  +#.*)?$", README, re.M)
    )
    assert shown == {
        "make demo",
        "make test",
        ".venv/bin/lunabridge run mine.lua",
        ".venv/bin/lunabridge lab run -- python3 example.py",
        ".venv/bin/lunabridge lab run -- uname -r",
        ".venv/bin/lunabridge lab up",
        ".venv/bin/lunabridge lab shell",
        ".venv/bin/lunabridge list",
        ".venv/bin/lunabridge stats",
        ".venv/bin/lunabridge events",
        ".venv/bin/lunabridge lab down",
    }


def test_make_knows_the_targets_and_lists_them():
    listed = _run("make", "help").stdout
    for target in ("demo", "test", "check", "clean", "distclean"):
        assert f"make {target}" in listed
    assert "lunabridge demo" in _run("make", "-n", "demo").stdout
    assert "pytest" in _run("make", "-n", "test").stdout
    assert "--kernel=6.1" in _run("make", "-n", "test", "KERNEL=6.1").stdout


def test_the_demo_passes_and_prints_what_the_readme_shows():
    printed = _run(LUNABRIDGE, "demo").stdout
    assert "PASSED" in printed.splitlines()[-1]
    claims = re.findall(r"^  ✓ (\w.*?)  +", README, re.M)
    assert len(claims) > 12
    for claim in claims:
        assert claim in printed


def test_the_policy_runs(tmp_path):
    policy = tmp_path / "mine.lua"
    policy.write_text(_block("lua"))
    report = json.loads(_run(LUNABRIDGE, "run", "--json", str(policy)).stdout)
    text = json.dumps(report)
    assert "dropped" in text
    assert "accepted" in text


@pytest.fixture
def example():
    """The example from Python, in the tree for as long as it is run."""
    path = PROJECT / "example.py"
    path.write_text(_block("python"))
    yield path.name
    path.unlink()


def test_the_example_from_python_runs(example):
    printed = _run(LUNABRIDGE, "lab", "run", "--", "python3", example).stdout
    first, second = printed.splitlines()
    assert first.startswith("dropped")
    assert second.startswith("accepted")


def test_a_lab_goes_up_lists_its_runtimes_and_goes_down(tmp_path):
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    tmp_path.chmod(0o700)
    _run(LUNABRIDGE, "lab", "up", env=environment)
    try:
        assert (
            "6.12"
            in _run(LUNABRIDGE, "lab", "run", "--", "uname", "-r", env=environment).stdout
        )
        assert json.loads(_run(LUNABRIDGE, "list", "--json", env=environment).stdout) == []
        assert json.loads(_run(LUNABRIDGE, "stats", "--json", env=environment).stdout) == []
        heard = subprocess.run(
            [LUNABRIDGE, "events", "--timeout", "1"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert heard.returncode == 1
        assert "not loaded, so there is no runtime" in heard.stderr  # nor anything to hear
        shell = _run(LUNABRIDGE, "lab", "shell", env=environment, input="exit\n")
        assert shell.returncode == 0
    finally:
        _run(LUNABRIDGE, "lab", "down", env=environment)
