"""`lunabridge completion` makes shells complete; bash is really asked to."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from bridge import cli
from bridge.module import PROJECT

# How long bash may take for one answer; it takes a second where nothing else runs.
PATIENCE_S = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A place in PATH with a lunabridge that is this tree's."""
    program = tmp_path / "lunabridge"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bridge.cli "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT), "PS1": "ready> "}


@pytest.fixture
def complete(environment: dict[str, str], tmp_path: Path) -> Callable[..., set[str]]:
    """Have bash's completion function complete the last of some words."""

    def ask(*words: str) -> set[str]:
        script = f"""
            eval "$(lunabridge completion bash)" && complete -p lunabridge >&2
            COMP_WORDS=(lunabridge "$@") COMP_CWORD=$#
            {function} lunabridge && printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", *words],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert function in done.stderr, "bash does not know whom to ask"
        return set(done.stdout.split())

    function = "_lunabridge_completion"
    return ask


def test_bash_completes_verbs(complete: Callable[..., set[str]]) -> None:
    assert complete("st") == {"stats", "stop"}
    assert complete("") == set(cli.VERBS)
    assert complete("nothing") == set()


def test_bash_completes_options_verbs_below_verbs_and_choices(
    complete: Callable[..., set[str]],
) -> None:
    assert complete("check", "--st") == {"--strict"}
    assert complete("lab", "sh") == {"shell"}
    assert complete("completion", "b") == {"bash"}
    assert complete("--vers") == {"--version"}


def test_bash_completes_policies(complete: Callable[..., set[str]]) -> None:
    for verb in ("run", "check"):
        assert "drop_port" in complete(verb, "dr")
        assert "cidr" not in complete(verb, "ci"), "a library is no policy"


@pytest.fixture
def terminal(environment: dict[str, str], tmp_path: Path) -> Iterator[int]:
    """An interactive bash that has read the completion script."""
    process, descriptor = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        os.write(descriptor, b'eval "$(lunabridge completion bash)"; echo com"plete"\n')
        read_until(descriptor, b"complete")
        yield descriptor
    finally:
        os.close(descriptor)  # bash ends when its terminal does
        os.waitpid(process, 0)


def read_until(descriptor: int, wanted: bytes) -> None:
    seen, end = b"", time.monotonic() + PATIENCE_S
    while wanted not in seen:
        left_s = max(0.0, end - time.monotonic())
        assert select.select([descriptor], [], [], left_s)[0], f"{wanted!r} not in {seen!r}"
        seen += os.read(descriptor, 4096)


def test_a_tab_in_bash_completes_a_verb(terminal: int) -> None:
    os.write(terminal, b"lunabridge doc\t--help\n")
    read_until(terminal, b"everything the bridge needs")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_this_program(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_LUNABRIDGE_COMPLETE" in script
    assert f"{shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_another_shell_is_a_usage_error() -> None:
    assert cli.run(["completion", "csh"]) == 2


def test_completing_a_verb_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(*_: object) -> None:
        raise AssertionError("a verb was imported")

    monkeypatch.setattr(cli.LazyGroup, "get_command", imported)
    group = cli.cli
    found = group.shell_complete(click.Context(group), "li")
    assert [one.value for one in found] == ["list"]
