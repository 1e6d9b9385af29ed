"""What the events of a run amount to: passed, or failed and why.

Nothing that was not seen counts as passed: a class of packets without an event, a
proof that is missing, a run that did not reach its end each fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bridge.events import Counters, End, Event, Life, Packets, Proved, Switch

HOLDS, VIOLATED = "holds", "violated"
_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run; ``reasons`` say why it is not as it should be."""

    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything was as expected."""
        return not self.reasons

    @property
    def exit_status(self) -> int:
        """0 for passed, 1 for failed; see bridge/errors.py."""
        return 0 if self.passed else 1


def judge_demo(
    events: Sequence[Event], expected: Mapping[str, str | None], switches: int
) -> Outcome:
    """Judge the demonstration: each class, each switch, the life, the proof, the end.

    ``expected`` maps each class's key to its verdict; ``switches`` is how many resumes
    changed the policy under traffic.
    """
    return Outcome(
        (
            *_packets(_all(events, Packets), expected),
            *_switches(_all(events, Switch), switches),
            *_errors(_all(events, Counters)),
            *_life(_all(events, Life)),
            *_proof(_all(events, Proved), must_count=True),
            *_end(events),
        )
    )


def judge_run(events: Sequence[Event]) -> Outcome:
    """Judge the run of any policy: no errors in callbacks, a proof, an end.

    Completeness is part of it where the policy's hooks make it a measure.
    """
    return Outcome(
        (
            *_errors(_all(events, Counters)),
            *_proof(_all(events, Proved), must_count=False),
            *_end(events),
        )
    )


def _all(events: Iterable[Event], kind: type[_Kind]) -> list[_Kind]:
    return [event for event in events if isinstance(event, kind)]


def _packets(classes: list[Packets], expected: Mapping[str, str | None]) -> list[str]:
    reasons = []
    counts = Counter(one.key for one in classes)
    for one in classes:
        if one.key not in expected:
            reasons.append(f"{one.key}: nobody asked for this class")
        elif one.expected != expected[one.key] or not one.as_expected:
            reasons.append(f"{named(one)}: {expected[one.key]} expected, {told(one)} seen")
    reasons += [f"{key}: no such packets were sent" for key in expected if not counts[key]]
    reasons += [f"{key}: reported {n} times" for key, n in counts.items() if n > 1]
    return reasons


def named(one: Packets) -> str:
    """Name a class with its IP version."""
    return f"{one.title} (IPv{one.version})" if one.version else one.title


def told(one: Packets) -> str:
    """Tell what was seen of a class: ``accepted``, or ``3 dropped, 1 accepted``."""
    seen = {verdict: n for verdict, n in one.seen.items() if n}
    if not seen:
        return "nothing"
    if len(seen) == 1 and sum(seen.values()) == one.sent:
        return next(iter(seen))
    return ", ".join(f"{n} {verdict}" for verdict, n in seen.items())


def _switches(found: list[Switch], wanted: int) -> list[str]:
    reasons = [f"{one.call}: the switch is not clean" for one in found if not one.is_clean]
    if len(found) != wanted:
        reasons.append(f"{wanted} resumes under traffic were to be judged, {len(found)} were")
    return reasons


def _errors(counters: list[Counters]) -> list[str]:
    if not counters:
        return ["the module's counters are missing"]
    return [
        f"{one.errors} of {one.calls} callbacks failed: {one.last_error or 'no message'}"
        for one in counters[-1:]
        if one.errors
    ]


def _life(steps: list[Life]) -> list[str]:
    names = [one.what for one in steps]
    complete = names[:2] == ["created", "armed"] and names[-1:] == ["stopped"]
    reasons = [] if complete else [f"the runtime's life is incomplete: {', '.join(names)}"]
    changes = names[2:-1]
    if changes[::2] != ["resumed"] * len(changes[::2]) or changes[1::2] != ["yielded"] * len(
        changes[::2]
    ):
        reasons.append(f"resumes and yields do not alternate: {', '.join(changes)}")
    return reasons


def _proof(proofs: list[Proved], *, must_count: bool) -> list[str]:
    if len(proofs) != 1:
        return ["the proof is missing" if not proofs else "there is more than one proof"]
    proof = proofs[0]
    reasons = [
        f"{one.name} is {one.outcome}: {'; '.join(one.reasons) or 'no reason given'}"
        for one in proof.properties
        if one.outcome != HOLDS and (must_count or _matters(one.name, one.outcome, proof))
    ]
    if must_count or proof.forwarded is not None:
        if proof.forwarded != proof.callbacks:
            reasons.append(
                f"{proof.callbacks} callbacks for {proof.forwarded} packets at the hook's place"
            )
        if must_count and not proof.callbacks:
            reasons.append("no callback was traced")
    if not proof.properties or (proof.outcome != HOLDS and not reasons and must_count):
        reasons.append(f"the proof is {proof.outcome}")
    if proof.lost:
        reasons.append(f"{proof.lost} trace events were lost")
    return list(dict.fromkeys(reasons))


def _matters(name: str, outcome: str, proof: Proved) -> bool:
    """Whether a property counts that does not hold: not where it cannot be measured."""
    if outcome == VIOLATED:
        return True
    return not (name == "completeness" and proof.forwarded is None and not proof.lost)


def _end(events: Sequence[Event]) -> list[str]:
    return [] if any(isinstance(one, End) for one in events) else ["it did not reach its end"]
