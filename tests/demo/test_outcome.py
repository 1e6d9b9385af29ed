"""Whatever is wrong, or missing, in a recorded run turns its outcome red."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bridge.demo.scenario import CALLS, expectations
from bridge.events import (
    Counters,
    End,
    Event,
    Life,
    Network,
    Packets,
    Phase,
    Policy,
    Proved,
    Stage,
    Switch,
)
from bridge.outcome import Outcome, judge_demo, judge_run

KEYS = sorted(expectations())
OTHER = {"accepted": "dropped", "dropped": "accepted"}


def judged(events: list[Event]) -> Outcome:
    return judge_demo(events, expectations(), len(CALLS))


def change(
    events: list[Event], kind: type[Any], alter: Callable[[Any], Any], key: str | None = None
) -> list[Event]:
    """The events with every one of a kind (or the class of that key) altered."""
    chosen = [
        one
        for one in events
        if isinstance(one, kind) and key in {None, getattr(one, "key", "")}
    ]
    assert chosen
    return [alter(one) if one in chosen else one for one in events]


def is_red(outcome: Outcome, *words: str) -> None:
    assert not outcome.passed
    assert outcome.exit_status == 1
    for word in words:
        assert word in "\n".join(outcome.reasons)


def test_the_recording_passed(passed: list[Event]) -> None:
    outcome = judged(passed)
    assert outcome.reasons == ()
    assert outcome.exit_status == 0


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_verdict_is_red_and_names_its_class(passed: list[Event], key: str) -> None:
    def turn(one: Packets) -> Packets:
        assert one.expected
        return replace(one, seen={OTHER[one.expected]: one.sent})

    title = next(one.title for one in passed if isinstance(one, Packets) and one.key == key)
    is_red(judged(change(passed, Packets, turn, key)), title)


@pytest.mark.parametrize("key", KEYS)
def test_one_packet_of_a_class_astray_is_red(passed: list[Event], key: str) -> None:
    def spoil(one: Packets) -> Packets:
        assert one.expected
        return replace(one, seen={one.expected: one.sent - 1, OTHER[one.expected]: 1})

    is_red(judged(change(passed, Packets, spoil, key)))


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_class_is_red(passed: list[Event], key: str) -> None:
    kept = [one for one in passed if not (isinstance(one, Packets) and one.key == key)]
    is_red(judged(kept), key)


@pytest.mark.parametrize("key", KEYS)
def test_the_guest_cannot_change_what_is_expected(passed: list[Event], key: str) -> None:
    def turn(one: Packets) -> Packets:
        other = OTHER[expectations()[key] or ""]
        return replace(one, expected=other, seen={other: one.sent})

    is_red(judged(change(passed, Packets, turn, key)))


def test_a_class_reported_twice_or_unasked_is_red(passed: list[Event]) -> None:
    one = next(one for one in passed if isinstance(one, Packets))
    is_red(judged([*passed, one]), "2 times")
    is_red(judged([*passed, replace(one, key="more/4")]), "nobody asked")


@pytest.mark.parametrize("kind", [Proved, End, Counters, Switch, Life])
def test_a_missing_event_is_red(passed: list[Event], kind: type[Event]) -> None:
    is_red(judged([one for one in passed if not isinstance(one, kind)]))


def test_each_event_is_needed_that_is_not_for_show(passed: list[Event]) -> None:
    shown = (Network, Policy, Phase, Stage)
    for number, one in enumerate(passed):
        outcome = judged(passed[:number] + passed[number + 1 :])
        assert outcome.passed == isinstance(one, shown), one


@pytest.mark.parametrize(
    "flaw",
    [
        {"last": -1},
        {"first": -1},
        {"first": 99},
        {"during": 1},
        {"untraced": 1},
        {"misjudged": 1},
    ],
)
def test_a_switch_that_is_not_clean_is_red(passed: list[Event], flaw: dict[str, int]) -> None:
    is_red(judged(change(passed, Switch, lambda one: replace(one, **flaw))), "not clean")


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("how", ["violated", "inconclusive"])
def test_a_property_that_does_not_hold_is_red(
    passed: list[Event], number: int, how: str
) -> None:
    def break_one(proof: Proved) -> Proved:
        properties = list(proof.properties)
        properties[number] = replace(properties[number], outcome=how, reasons=("it slept",))
        return replace(proof, outcome=how, properties=tuple(properties))

    is_red(judged(change(passed, Proved, break_one)), how, "it slept")


@pytest.mark.parametrize(
    "flaw",
    [
        {"callbacks": 0, "forwarded": 0},
        {"callbacks": 7},
        {"forwarded": None},
        {"lost": 1},
        {"properties": ()},
        {"outcome": "violated"},
        {"outcome": "inconclusive"},
    ],
)
def test_a_weak_proof_is_red(passed: list[Event], flaw: dict[str, Any]) -> None:
    is_red(judged(change(passed, Proved, lambda one: replace(one, **flaw))))


def test_a_callback_that_failed_is_red(passed: list[Event]) -> None:
    broken = change(
        passed, Counters, lambda one: replace(one, errors=2, last_error="dns:3: no")
    )
    is_red(judged(broken), "2 of", "dns:3: no")
    is_red(judge_run(broken), "dns:3: no")


def test_any_policy_may_have_hooks_that_cannot_be_counted(passed: list[Event]) -> None:
    def uncount(proof: Proved) -> Proved:
        rest = proof.properties[:2]
        unknown = replace(
            proof.properties[2], outcome="inconclusive", reasons=("nobody said how many",)
        )
        return replace(
            proof, outcome="inconclusive", properties=(*rest, unknown), forwarded=None
        )

    assert judge_run(change(passed, Proved, uncount)).passed


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("how", ["violated", "inconclusive"])
def test_a_policy_that_is_not_proven_is_red(passed: list[Event], number: int, how: str) -> None:
    def break_one(proof: Proved) -> Proved:
        properties = list(proof.properties)
        properties[number] = replace(properties[number], outcome=how, reasons=("it slept",))
        return replace(proof, outcome=how, properties=tuple(properties))

    is_red(judge_run(change(passed, Proved, break_one)), how)


@pytest.mark.parametrize("kind", [Proved, End, Counters])
def test_a_run_with_a_missing_event_is_red(passed: list[Event], kind: type[Event]) -> None:
    assert judge_run(passed).passed
    is_red(judge_run([one for one in passed if not isinstance(one, kind)]))
