"""The command line as such: what it imports, reports and exits with; public names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import bridge.lab
from bridge import cli, maintenance
from bridge.errors import BridgeError, EnvironmentLacking, GuestCrashed, LabTimeout, UsageError
from bridge.lab import Check

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Run a verb that does what the test says; return its exit status."""

    def run(action: Callable[[], object]) -> int:
        command = click.Command("try", callback=action)
        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: command)
        return cli.run(["try"])

    return run


def raiser(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BridgeError("x"), 1),
        (UsageError("x"), 2),
        (click.UsageError("x"), 2),
        (EnvironmentLacking("x"), 3),
        (LabTimeout("x"), 124),
        (GuestCrashed("x"), 255),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_failure_has_its_status(
    verb: Callable[..., int], error: BaseException, status: int
) -> None:
    assert verb(raiser(error)) == status


def test_a_verbs_own_status_is_passed_on(verb: Callable[..., int]) -> None:
    assert verb(lambda: 77) == 77
    assert verb(lambda: None) == 0


def test_a_crash_shows_the_console_and_a_failure_its_cure(
    verb: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raiser(GuestCrashed("it died", console="last words", cure="do this")))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [word for word in ("it died", "last words", "do this") if word in printed.err] == [
        "it died",
        "last words",
        "do this",
    ]


def test_the_command_line_starts_without_importing_what_it_may_not_need() -> None:
    """It runs in the guest too, where every import is paid for under emulation."""
    script = "import bridge.cli, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    dear = {"bridge.lab", "rich", "scapy", "pyroute2", "asyncio", "bcc", "subprocess"}
    assert dear & set(done.stdout.split()) == set()


def test_every_verb_can_be_imported() -> None:
    context = click.Context(cli.cli)
    assert isinstance(cli.cli, click.Group)
    for name in cli.cli.list_commands(context):
        assert isinstance(cli.cli.get_command(context, name), click.Command), name


def test_an_unknown_verb_is_a_usage_error(call: Call) -> None:
    assert call("no-such-verb").returncode == 2


def test_doctor_fails_where_something_needed_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("good", True, "fine"), Check("maybe", None, "unknown", "try")]
    monkeypatch.setattr(maintenance, "_functions", lambda _: [lambda: checks])
    assert cli.run(["doctor"]) == 0
    checks.append(Check("bad", False, "gone", "install it"))
    assert cli.run(["doctor"]) == 3
    assert "install it" in capsys.readouterr().out


def test_clean_names_what_it_removed(call: Call, runtime_dir: Path) -> None:
    stale = runtime_dir / "lunatik-bridge" / "stale"
    stale.mkdir(parents=True, mode=0o700)
    stale.parent.chmod(0o700)
    done = call("clean", XDG_CACHE_HOME=str(runtime_dir))
    assert done.returncode == 0, done.stderr
    assert str(stale).encode() in done.stdout
    assert not stale.exists()


def test_the_labs_public_names_are_these() -> None:
    assert bridge.lab.__all__ == [
        "Check",
        "Completed",
        "Facts",
        "Lab",
        "Options",
        "Session",
        "clean_leftovers",
        "diagnose",
    ]
    for name in bridge.lab.__all__:
        assert hasattr(bridge.lab, name)
