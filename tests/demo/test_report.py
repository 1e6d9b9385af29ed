"""What a user sees: plain, on narrow and wide screens, in colour, as JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from bridge import report
from bridge.demo.scenario import CALLS, expectations
from bridge.events import Event, Packets, Policy, Proved, Stage
from bridge.outcome import Outcome, judge_demo


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(events: list[Event], out: Console, *, show_source: bool = True) -> str:
    screen = report.Screen(out, show_source=show_source)
    screen.title("A title", "a place")
    for event in events:
        screen.show(event)
    screen.timings([one for one in events if isinstance(one, Stage)])
    screen.outcome(judge_demo(events, expectations(), len(CALLS)), "all is well", 31.4)
    file = out.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def plain(events: list[Event], width: int = 100) -> str:
    out = report.console(io.StringIO())
    out.width = width
    return shown(events, out)


def test_plain_output_has_no_control_codes(passed: list[Event]) -> None:
    assert all(char == "\n" or char.isprintable() for char in plain(passed))


def test_every_class_and_property_is_shown(passed: list[Event]) -> None:
    text = plain(passed)
    for event in passed:
        match event:
            case Packets():
                assert event.title in text
            case Proved():
                assert all(one.claim in text for one in event.properties)
            case Policy():
                assert all(line in text for line in event.source.splitlines())
            case _:
                pass


def test_the_last_line_is_the_outcome(passed: list[Event]) -> None:
    assert plain(passed).splitlines()[-1] == "PASSED: all is well (31.4 s)"
    red = plain(passed[:-1]).splitlines()
    assert red[-1] == "FAILED: 1 thing not as expected (31.4 s)"
    assert "did not reach its end" in red[-2]


def test_eighty_columns_are_enough(passed: list[Event]) -> None:
    out = report.console(io.StringIO())
    out.width = 80
    lines = shown(passed, out, show_source=False).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert any("198.51.100.254" in line for line in lines)


def test_a_wide_screen_gets_the_drawing(passed: list[Event]) -> None:
    assert "| router |" in plain(passed)


@pytest.mark.parametrize(("variable", "colours"), [(None, True), ("NO_COLOR", False)])
def test_colours_are_for_terminals_that_want_them(
    passed: list[Event], monkeypatch: pytest.MonkeyPatch, variable: str | None, colours: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if variable:
        monkeypatch.setenv(variable, "1")
    assert ("\x1b[" in shown(passed, report.console(Terminal()))) == colours


def test_quiet_is_plain(passed: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" not in shown(passed, report.console(Terminal(), quiet=True))


def test_a_wrong_verdict_has_a_cross(passed: list[Event]) -> None:
    events = [
        replace(one, seen={"accepted": 1, "dropped": one.sent - 1})
        if isinstance(one, Packets) and one.key == "listed/6"
        else one
        for one in passed
    ]
    row = next(line for line in plain(events).splitlines() if "1 accepted, 3 dropped" in line)
    assert "✗" in row
    assert "listed or below it" in row


def test_a_violation_is_shown_with_its_reason(passed: list[Event]) -> None:
    def broken(proof: Proved) -> Proved:
        first = replace(proof.properties[0], outcome="violated", reasons=("called msleep",))
        return replace(proof, properties=(first, *proof.properties[1:]), atomic_violations=1)

    text = plain([broken(one) if isinstance(one, Proved) else one for one in passed])
    assert ": violated" in text
    assert "      called msleep" in text


def test_marks_do_without_unicode(passed: list[Event]) -> None:
    out = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), color_system=None)
    screen = report.Screen(out)
    screen.show(next(one for one in passed if isinstance(one, Packets)))
    out.file.flush()


def test_json_has_everything(passed: list[Event]) -> None:
    outcome = Outcome(("because",))
    whole = json.loads(
        json.dumps(report.as_json(passed, outcome, where="the lab", seconds=1.0))
    )
    assert whole["passed"] is False
    assert whole["reasons"] == ["because"]
    assert {one["key"] for one in whole["packets"]} == set(expectations())
    assert all(one["as_expected"] for one in whole["packets"])
    assert [one["clean"] for one in whole["switches"]] == [True] * len(CALLS)
    assert whole["proof"]["outcome"] == "holds"
    assert whole["life"][0]["what"] == "created"
    assert whole["policy"]["name"] == "dns_block"


def test_timings_are_on_one_clock(passed: list[Event]) -> None:
    host = [Stage("boot the lab", 0.0, 3.0)]
    stages = report.whole_timing(host, passed, 60.0)
    assert stages[0] == host[0]
    assert stages[1].name == "start the guest half"
    assert all(one.start_s >= stages[1].end_s for one in stages[2:])
    assert stages[-1].end_s <= 60.0
