"""The verb shows, judges and exits as it should; the place is a recording."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from bridge import cli, runtimes
from bridge.demo import command
from bridge.errors import LuaError
from bridge.events import End, Event, Packets, Stage

Runs = list[tuple[str, Mapping[str, Any]]]


class Recorded:
    where = "a recording"
    stages: Sequence[Stage] = (Stage("boot the lab", 0.0, 3.0),)

    def __init__(self, events: Sequence[Event], error: Exception | None = None) -> None:
        self.events = events
        self.error = error
        self.interrupted = False
        self.runs: Runs = []

    def work(
        self, module: str, job: Mapping[str, Any], timeout_s: float | None, **_: object
    ) -> Iterator[Event]:
        self.runs.append((module, job))
        yield from self.events
        if self.error:
            raise self.error


@pytest.fixture
def recorded(passed: list[Event], monkeypatch: pytest.MonkeyPatch) -> Recorded:
    place = Recorded(passed)

    @contextmanager
    def opened(**_: object) -> Iterator[Recorded]:
        yield place

    monkeypatch.setattr(command, "open_place", opened)
    monkeypatch.setattr(runtimes, "open_place", opened)
    return place


def test_a_demonstration_that_passed(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["demo"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("PASSED")
    assert "building the network" in err


def test_a_wrong_class_exits_with_1(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.events = [
        one for one in recorded.events if not (isinstance(one, Packets) and one.key == "tcp/6")
    ]
    assert cli.run(["demo"]) == 1
    assert "tcp/6" in capsys.readouterr().out


def test_json_is_one_object_and_nothing_else(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["demo", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["passed"] is True
    recorded.events = recorded.events[:-1]
    assert cli.run(["demo", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_quiet_says_nothing_on_standard_error(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["demo", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_timings_are_shown(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--timings"]) == 0
    assert "boot the lab" in capsys.readouterr().out


def test_an_interrupted_demonstration_exits_with_130(recorded: Recorded) -> None:
    recorded.interrupted = True
    recorded.events = recorded.events[:4]
    assert cli.run(["demo"]) == 130


def test_run_sends_the_text_of_the_policy(recorded: Recorded) -> None:
    assert cli.run(["run", "drop_port", "--stay"]) == 0
    ((module, job),) = recorded.runs
    assert module == "bridge.trial"
    assert job["name"] == "drop_port"
    assert job["stay"] is True
    assert "netfilter" in job["source"]


def test_a_script_that_does_not_load_exits_with_1(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.error = LuaError("x:3: oops", traceback="\tx:3: in main chunk")
    assert cli.run(["run", "accept"]) == 1
    err = capsys.readouterr().err
    assert "x:3: oops" in err
    assert "in main chunk" in err


def test_a_run_that_does_not_end_exits_with_1(recorded: Recorded) -> None:
    recorded.events = [one for one in recorded.events if not isinstance(one, End)]
    assert cli.run(["run", "accept"]) == 1


def test_a_policy_that_is_none_boots_nothing(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["run", "no/such.lua"]) == 2
    assert recorded.runs == []
    assert "no file no/such.lua" in capsys.readouterr().err


def test_list_stats_events_and_stop_need_a_lab(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["list"], ["stats"], ["events"], ["stop", "--all"]):
        assert cli.run([*verb, "--lab", "no-such-lab"]) == 3
        assert "lunabridge lab up --name no-such-lab" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["1", "--all"]])
def test_stop_wants_numbers_or_all(arguments: list[str]) -> None:
    assert cli.run(["stop", *arguments]) == 2
