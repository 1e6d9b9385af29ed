"""prove() on traces made by hand: what holds, what is violated, what is inconclusive."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bridge.errors import TraceInconclusive
from bridge.tracer import (
    Coverage,
    Event,
    Expected,
    Explained,
    HookCount,
    Kind,
    Leak,
    Losses,
    Outcome,
    ProofError,
    Trace,
    prove,
)

HOLDS, VIOLATED, INCONCLUSIVE = Outcome.HOLDS, Outcome.VIOLATED, Outcome.INCONCLUSIVE
CREATE_FAILED = 2


def life(
    *kinds: Kind | tuple[Kind, int], runtime: int = 7, reason: int = 0
) -> tuple[Event, ...]:
    """Return a runtime's events; with a kind may come the Lua state that it is about."""
    pairs = (kind if isinstance(kind, tuple) else (kind, 0) for kind in kinds)
    return tuple(
        Event(kind, 1000 * i, 0, runtime, a=reason if kind is Kind.STOP else 0, b=state)
        for i, (kind, state) in enumerate(pairs)
    )


CLEAN = Trace(
    events=life(Kind.CREATE, Kind.ARM, Kind.RESUME, Kind.YIELD, Kind.STOP),
    hooks=(HookCount(7, 1, seen=20, returned=20, verdicts={"accept": 20}),),
    run_entries=20,
    run_returns=20,
)


def with_violation(kind: Kind, **fields: object) -> Trace:
    event = replace(Event(kind, 5000, 3, 7, 1, task=99), **fields)  # type: ignore[arg-type]
    return replace(CLEAN, events=(*CLEAN.events, event), violation_counts={kind: 1})


def test_a_clean_trace_holds() -> None:
    proof = prove(CLEAN, 20)
    assert [one.outcome for one in proof.properties] == [HOLDS, HOLDS, HOLDS]
    proof.require()


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        (Kind.SCHEDULED, {}, "switched away (it slept)"),
        (Kind.SCHEDULED, {"a": 1}, "switched away (preempted)"),
        (Kind.CALLED, {"text": "msleep"}, "may sleep: msleep"),
        (Kind.ALLOCATED, {"a": 0xCC0, "text": "f+0x1"}, "may sleep: GFP_KERNEL by f+0x1"),
        (Kind.PREEMPTIBLE, {}, "neither preemption nor bottom halves were off"),
        (Kind.BH_ENABLED, {"text": "f"}, "enabled bottom halves: f"),
        (Kind.DISAGREES, {"a": 0x201, "b": 1}, "0x201, said to be 0x1"),
        (Kind.UNCONFIRMED, {}, "outside the hook's function"),
        (Kind.UNMATCHED, {}, "hook_exit without its hook_enter"),
    ],
)
def test_each_breach_of_atomic_context_is_named(
    kind: Kind, fields: dict[str, object], says: str
) -> None:
    proof = prove(with_violation(kind, **fields), 20)
    assert proof.atomic.outcome is VIOLATED
    assert proof.lifecycle.outcome is HOLDS
    (violation,) = proof.atomic.violations
    assert says in violation.what
    assert str(violation).startswith("runtime 7 hook 1 on CPU 3 at 0.000005 s: ")
    with pytest.raises(ProofError, match="atomic is violated"):
        proof.require()


@pytest.mark.parametrize("kind", [Kind.AFTER_STOP, Kind.BEFORE_ARM])
def test_a_callback_outside_the_armed_life_breaches_lifecycle(kind: Kind) -> None:
    proof = prove(with_violation(kind), 20)
    assert (proof.atomic.outcome, proof.lifecycle.outcome) == (HOLDS, VIOLATED)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.is_violation])
def test_no_kind_of_violation_leaves_the_proof_green(kind: Kind) -> None:
    assert prove(with_violation(kind), 20).outcome is not HOLDS


@pytest.mark.parametrize(
    "kind", [kind for kind in Kind if kind.is_violation and kind is not Kind.UNKNOWN_RUNTIME]
)
def test_a_violation_whose_event_was_not_kept_still_counts(kind: Kind) -> None:
    proof = prove(replace(CLEAN, violation_counts={kind: 3}), 20)
    assert proof.outcome is VIOLATED
    assert "3 more times" in "".join(r for one in proof.properties for r in one.reasons)


@pytest.mark.parametrize(
    "kinds",
    [
        (Kind.CREATE, Kind.RESUME, Kind.YIELD, Kind.STOP),
        (Kind.CREATE, Kind.ARM, Kind.YIELD, Kind.STOP),
        (Kind.CREATE, Kind.ARM, Kind.RESUME, Kind.RESUME, Kind.YIELD, Kind.STOP),
        (Kind.CREATE, Kind.ARM, Kind.RESUME, Kind.STOP),
        (Kind.CREATE, Kind.ARM, Kind.STOP, Kind.STOP),
        (Kind.CREATE, Kind.ARM, Kind.STOP, Kind.RESUME, Kind.YIELD),
        (Kind.CREATE, Kind.STOP),
    ],
)
def test_events_out_of_order_breach_lifecycle(kinds: tuple[Kind, ...]) -> None:
    assert prove(replace(CLEAN, events=life(*kinds)), 20).lifecycle.outcome is VIOLATED


@pytest.mark.parametrize(
    "resumed",
    [
        [(Kind.RESUME, 0), (Kind.RESUME, 1), (Kind.YIELD, 0), (Kind.YIELD, 1)],
        [(Kind.RESUME, 1), (Kind.RESUME, 0), (Kind.YIELD, 0), (Kind.YIELD, 1)],
        [(Kind.RESUME, 0), Kind.REPLACE, (Kind.YIELD, 0), Kind.REPLACE],
        [Kind.REPLACE, Kind.REPLACE, (Kind.RESUME, 0), (Kind.YIELD, 0)],
    ],
)
def test_what_lua_states_do_at_the_same_time_is_in_order(resumed: list[Any]) -> None:
    events = life(Kind.CREATE, Kind.ARM, *resumed, Kind.STOP)
    prove(replace(CLEAN, events=events), 20).require()


@pytest.mark.parametrize(
    ("resumed", "says"),
    [
        ([(Kind.RESUME, 0), (Kind.RESUME, 0), (Kind.YIELD, 0)], "resume after resume"),
        ([(Kind.RESUME, 0), (Kind.YIELD, 1), (Kind.YIELD, 0)], "yield: returned after arm"),
        ([(Kind.RESUME, 0), (Kind.RESUME, 1), (Kind.YIELD, 0)], "stop: requested after resume"),
        (
            [(Kind.RESUME, 0), (Kind.RESUME, 1), (Kind.YIELD, 0), (Kind.YIELD, 0)],
            "yield: returned after yield",
        ),
    ],
)
def test_one_lua_state_out_of_order_breaches_lifecycle(resumed: list[Any], says: str) -> None:
    events = life(Kind.CREATE, Kind.ARM, *resumed, Kind.STOP)
    lifecycle = prove(replace(CLEAN, events=events), 20).lifecycle
    assert lifecycle.outcome is VIOLATED
    assert says in [one.what for one in lifecycle.violations]


@pytest.mark.parametrize("before", [(), (Kind.CREATE,), (Kind.CREATE, Kind.ARM, Kind.STOP)])
def test_a_replacement_outside_the_armed_life_breaches_lifecycle(
    before: tuple[Kind, ...],
) -> None:
    events = life(*before, Kind.REPLACE)
    created = CLEAN.events[:1] if not before else ()
    trace = replace(CLEAN, events=(*events, *created))
    assert prove(trace, 20).lifecycle.outcome is VIOLATED


def test_a_failed_creation_is_clean() -> None:
    failed = life(Kind.CREATE, Kind.ERROR, Kind.STOP, runtime=8, reason=CREATE_FAILED)
    assert prove(replace(CLEAN, events=(*CLEAN.events, *failed)), 20).outcome is HOLDS


def test_bytes_the_module_says_it_held_breach_lifecycle() -> None:
    stop = replace(CLEAN.events[-1], b=64)
    proof = prove(replace(CLEAN, events=(*CLEAN.events[:-1], stop)), 20)
    assert "still held 64 bytes" in str(proof.lifecycle.violations[0])


@pytest.mark.parametrize("runtime", [0, 7])
def test_a_leak_breaches_lifecycle(runtime: int) -> None:
    leak = Leak(runtime, "f+0x1 [lunatik]", 0x820, blocks=2, size_bytes=128)
    proof = prove(replace(CLEAN, leaks=(leak,)), 20)
    assert proof.lifecycle.outcome is VIOLATED
    assert "128 bytes in 2 blocks never freed, allocated by f+0x1" in str(
        proof.lifecycle.violations[0]
    )


def test_what_a_living_runtime_holds_is_no_leak() -> None:
    leaks = tuple(Leak(id_, "f", 0x820, 1, 64) for id_ in (0, 7))
    trace = replace(CLEAN, events=CLEAN.events[:-1], leaks=leaks)
    lifecycle = prove(trace, 20).lifecycle
    assert lifecycle.outcome is INCONCLUSIVE
    assert lifecycle.gaps == ("runtime 7 was not stopped",)


def test_a_callback_never_left_breaches_lifecycle() -> None:
    proof = prove(replace(CLEAN, open_callbacks=((7, 1),)), 20)
    assert "entered and never left" in str(proof.lifecycle.violations[0])


@pytest.mark.parametrize("field", ["events", "untracked", "missed", "nested", "undelivered"])
def test_any_loss_makes_all_properties_inconclusive(field: str) -> None:
    proof = prove(replace(CLEAN, lost=Losses(**{field: 1})), 20)
    assert {one.outcome for one in proof.properties} == {INCONCLUSIVE}
    with pytest.raises(TraceInconclusive, match=f"1 {field}"):
        proof.require()


def test_a_loss_does_not_hide_a_breach() -> None:
    trace = replace(with_violation(Kind.SCHEDULED), lost=Losses(events=1))
    assert prove(trace, 20).atomic.outcome is VIOLATED


def test_a_loss_makes_a_wrong_count_inconclusive() -> None:
    trace = replace(CLEAN, lost=Losses(events=1))
    assert prove(trace, 21).completeness.outcome is INCONCLUSIVE


def test_a_probe_that_failed_to_attach_is_inconclusive() -> None:
    trace = replace(CLEAN, coverage=Coverage(failed=("msleep",)))
    with pytest.raises(TraceInconclusive, match="probe msleep failed to attach"):
        prove(trace, 20).require()


def test_a_runtime_whose_creation_was_not_seen_is_inconclusive() -> None:
    trace = replace(CLEAN, events=CLEAN.events[1:])
    with pytest.raises(TraceInconclusive, match="runtime 7 was there before the tracer"):
        prove(trace, 20).require()


def test_a_runtime_known_from_its_hooks_alone_is_inconclusive() -> None:
    hooks = (*CLEAN.hooks, HookCount(6, 1, seen=1, returned=1))
    trace = replace(CLEAN, hooks=hooks, run_entries=21, run_returns=21)
    with pytest.raises(TraceInconclusive, match="runtime 6 was there before the tracer"):
        prove(trace, 21).require()


def test_an_unknown_runtime_whose_events_were_not_kept_is_inconclusive() -> None:
    trace = replace(CLEAN, violation_counts={Kind.UNKNOWN_RUNTIME: 1})
    assert prove(trace, 20).outcome is INCONCLUSIVE


def test_no_callback_at_all_is_inconclusive() -> None:
    proof = prove(replace(CLEAN, hooks=(), run_entries=0, run_returns=0), 20)
    assert proof.atomic.outcome is INCONCLUSIVE
    assert proof.completeness.outcome is INCONCLUSIVE


def test_an_empty_trace_proves_nothing() -> None:
    assert {one.outcome for one in prove(Trace(), 0).properties[:2]} == {INCONCLUSIVE}


def test_a_hook_function_not_left_as_often_as_entered_is_inconclusive() -> None:
    proof = prove(replace(CLEAN, run_returns=19), 20)
    assert proof.atomic.gaps == ("the hook's function was entered 20 times and left 19 times",)


def test_fewer_calls_of_the_hook_function_than_callbacks_are_inconclusive() -> None:
    proof = prove(replace(CLEAN, run_entries=19, run_returns=19), 20)
    assert proof.atomic.outcome is INCONCLUSIVE


def test_without_a_number_completeness_is_inconclusive() -> None:
    assert prove(CLEAN).completeness.gaps == ("nobody said how many packets were sent",)


@pytest.mark.parametrize("sent", [19, 21])
def test_a_wrong_number_breaches_completeness(sent: int) -> None:
    proof = prove(CLEAN, sent)
    assert proof.completeness.outcome is VIOLATED
    assert f"{sent} packets sent should be seen, 20 were" in proof.completeness.reasons[0]


def test_explained_packets_are_taken_off() -> None:
    expected = Expected(
        24, (Explained(5, "matched no guard"), Explained(-1, "answered by the kernel"))
    )
    proof = prove(CLEAN, expected)
    assert proof.completeness.outcome is HOLDS
    assert "5 matched no guard" in proof.completeness.evidence


def test_an_explanation_too_large_breaches_completeness() -> None:
    proof = prove(CLEAN, Expected(20, (Explained(1, "lost on the way"),)))
    assert proof.completeness.outcome is VIOLATED


def test_packets_decided_without_lua_are_shown() -> None:
    proof = prove(replace(CLEAN, run_entries=22, run_returns=22), 20)
    assert proof.completeness.evidence == "20 sent, 20 seen, 2 turned away"


def test_each_hook_is_counted_on_its_own() -> None:
    hooks = (*CLEAN.hooks, HookCount(7, 2, seen=5, returned=5))
    trace = replace(CLEAN, hooks=hooks, run_entries=25, run_returns=25)
    assert prove(trace, [Expected(20, hook=1), Expected(5, hook=2)]).outcome is HOLDS
    swapped = prove(trace, [Expected(5, hook=1), Expected(20, hook=2)])
    assert len(swapped.completeness.violations) == 2


def test_a_proof_can_be_written_as_json() -> None:
    proof = prove(with_violation(Kind.CALLED, text="msleep", stack=("msleep+0x5",)), 21)
    value = json.loads(json.dumps(proof.to_json()))
    assert value["outcome"] == "violated"
    atomic = value["properties"][0]
    assert atomic["violations"][0]["stack"] == ["msleep+0x5"]
    assert atomic["violations"][0]["cpu"] == 3
