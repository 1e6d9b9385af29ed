"""Judge a trace: every callback atomic, every life clean, every packet seen.

Nothing here touches the kernel. A property is *violated* when the trace shows a
breach, *inconclusive* when the trace cannot show that there was none, and *holds*
otherwise; a breach outweighs a gap, and a gap outweighs a clean record.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.errors import BridgeError, TraceInconclusive
from bridge.tracer import gfp
from bridge.tracer.trace import CREATE_FAILED, Event, Kind, Trace


class Outcome(enum.Enum):
    """What became of a property."""

    HOLDS = "holds"
    VIOLATED = "violated"
    INCONCLUSIVE = "inconclusive"


class ProofError(BridgeError):
    """The trace shows that a property does not hold; ``proof`` has the details."""

    def __init__(self, message: str, proof: Proof) -> None:
        super().__init__(message)
        self.proof = proof


@dataclass(frozen=True, slots=True)
class Violation:
    """One breach: what, by which runtime and hook, where, when (ns) and through whom."""

    what: str
    runtime: int = 0
    hook: int = 0
    cpu: int | None = None
    time_ns: int | None = None
    task: int | None = None
    stack: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"runtime {self.runtime}" if self.runtime else "module"
        if self.hook:
            where += f" hook {self.hook}"
        if self.cpu is not None:
            where += f" on CPU {self.cpu}"
        if self.time_ns is not None:
            where += f" at {self.time_ns / 1e9:.6f} s"
        return f"{where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Property:
    """One thing to prove and what became of it.

    ``evidence`` says what was looked at, ``gaps`` why the trace is not enough.
    """

    name: str
    claim: str
    evidence: str
    violations: tuple[Violation, ...] = ()
    gaps: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """A breach outweighs a gap."""
        if self.violations:
            return Outcome.VIOLATED
        return Outcome.INCONCLUSIVE if self.gaps else Outcome.HOLDS

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the property does not hold, or is not known to."""
        return tuple(str(violation) for violation in self.violations) + self.gaps

    def to_json(self) -> dict[str, Any]:
        """Return the property as values that the json module can write."""
        return {
            "name": self.name,
            "claim": self.claim,
            "outcome": self.outcome.value,
            "evidence": self.evidence,
            "violations": [
                {name: getattr(one, name) for name in Violation.__slots__}
                for one in self.violations
            ],
            "gaps": list(self.gaps),
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """Packets that were sent and not seen (below zero: seen and not sent), and why."""

    packets: int
    why: str


@dataclass(frozen=True, slots=True)
class Expected:
    """How many packets were sent through a hook.

    ``runtime`` and ``hook`` narrow what is counted; None counts all.
    """

    sent: int
    explained: tuple[Explained, ...] = ()
    runtime: int | None = None
    hook: int | None = None

    @property
    def packets(self) -> int:
        """Packets the hook must have seen."""
        return self.sent - sum(one.packets for one in self.explained)


@dataclass(frozen=True, slots=True)
class Proof:
    """The three properties of one trace."""

    atomic: Property
    lifecycle: Property
    completeness: Property

    @property
    def properties(self) -> tuple[Property, Property, Property]:
        """All properties, in the order they are shown."""
        return self.atomic, self.lifecycle, self.completeness

    @property
    def outcome(self) -> Outcome:
        """Violated if any is, else inconclusive if any is, else holds."""
        outcomes = {one.outcome for one in self.properties}
        for worst in (Outcome.VIOLATED, Outcome.INCONCLUSIVE):
            if worst in outcomes:
                return worst
        return Outcome.HOLDS

    def require(self) -> None:
        """Return if all properties hold.

        Raises ProofError for a breach, TraceInconclusive for a gap.
        """
        lines = [
            f"{one.name} is {one.outcome.value}: {reason}"
            for one in self.properties
            for reason in one.reasons
        ]
        if self.outcome is Outcome.VIOLATED:
            raise ProofError("\n".join(lines), self)
        if self.outcome is Outcome.INCONCLUSIVE:
            raise TraceInconclusive("\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        """Return the proof as values that the json module can write."""
        return {
            "outcome": self.outcome.value,
            "properties": [one.to_json() for one in self.properties],
        }


def prove(trace: Trace, expected: Expected | Sequence[Expected] | int | None = None) -> Proof:
    """Judge a trace against the number of packets sent.

    ``expected`` is that number for all hooks together, or one Expected for each
    hook or runtime of interest. Without it completeness stays inconclusive.
    """
    wanted = _wanted(expected)
    gaps = _gaps(trace, wanted)
    return Proof(
        atomic=_atomic(trace, gaps),
        lifecycle=_lifecycle(trace, gaps),
        completeness=_completeness(trace, wanted, gaps),
    )


def _wanted(expected: Expected | Sequence[Expected] | int | None) -> tuple[Expected, ...]:
    if expected is None:
        return ()
    if isinstance(expected, int):
        return (Expected(expected),)
    return (expected,) if isinstance(expected, Expected) else tuple(expected)


# ---- what makes any trace inconclusive -----------------------------------


def _gaps(trace: Trace, wanted: Iterable[Expected]) -> tuple[str, ...]:
    gaps = []
    if trace.lost.total:
        gaps.append(_lost(trace))
    gaps += [f"probe {name} failed to attach" for name in trace.coverage.failed]
    gaps += [f"runtime {one} was there before the tracer" for one in _late(trace)]
    if trace.violation_counts.get(Kind.UNKNOWN_RUNTIME) and not _late(trace):
        gaps.append("callbacks ran for a runtime whose creation was not seen")
    if any(one.packets > 0 for one in wanted) and not trace.callbacks:
        gaps.append("no callback was seen at all, although packets were sent")
    return tuple(gaps)


def _lost(trace: Trace) -> str:
    names = ("events", "untracked", "missed", "nested", "undelivered")
    parts = [f"{getattr(trace.lost, n)} {n}" for n in names if getattr(trace.lost, n)]
    return "the tracer lost records: " + ", ".join(parts)


def _late(trace: Trace) -> list[int]:
    """Return the runtimes that did something although their creation was not seen."""
    created = {one.runtime for one in trace.events if one.kind is Kind.CREATE}
    return sorted(set(trace.runtimes) - created)


# ---- atomic context --------------------------------------------------------

_ATOMIC = {
    Kind.SCHEDULED: "the callback's task was switched away",
    Kind.CALLED: "the callback called a function that may sleep",
    Kind.ALLOCATED: "the callback allocated with flags that may sleep",
    Kind.PREEMPTIBLE: "neither preemption nor bottom halves were off",
    Kind.BH_ENABLED: "the callback enabled bottom halves",
    Kind.DISAGREES: "preempt_count is not what the module says",
    Kind.UNCONFIRMED: "hook_enter outside the hook's function",
    Kind.UNMATCHED: "hook_exit without its hook_enter",
}


def _atomic(trace: Trace, gaps: tuple[str, ...]) -> Property:
    violations = [
        _violation(event, _ATOMIC) for event in trace.violations if event.kind in _ATOMIC
    ]
    violations += _unlisted(trace, _ATOMIC)
    own = list(gaps)
    if not trace.callbacks:
        own.append("no callback was seen")
    if trace.run_entries != trace.run_returns:
        own.append(
            f"the hook's function was entered {trace.run_entries} times and left "
            f"{trace.run_returns} times"
        )
    if trace.run_entries < trace.callbacks and not _has(trace, Kind.UNCONFIRMED):
        own.append(f"{trace.callbacks} callbacks in {trace.run_entries} calls of the hook")
    return Property(
        "atomic",
        "every callback ran in atomic context and never slept",
        f"{trace.callbacks} callbacks, {len(trace.coverage.sleepers)} sleeping functions, "
        f"sched_switch, {sum(trace.allocations_by_gfp().values())} allocations",
        tuple(violations),
        tuple(dict.fromkeys(own)),
    )


def _has(trace: Trace, kind: Kind) -> bool:
    return trace.violation_counts.get(kind, 0) > 0


def _unlisted(trace: Trace, kinds: dict[Kind, str]) -> list[Violation]:
    """Return one summary for each kind whose events were too many to keep."""
    listed: dict[Kind, int] = {}
    for event in trace.violations:
        listed[event.kind] = listed.get(event.kind, 0) + 1
    return [
        Violation(f"{what}, {trace.violation_counts[kind] - listed.get(kind, 0)} more times")
        for kind, what in kinds.items()
        if trace.violation_counts.get(kind, 0) > listed.get(kind, 0)
    ]


def _violation(event: Event, names: dict[Kind, str]) -> Violation:
    return Violation(
        names[event.kind] + _through(event),
        event.runtime,
        event.hook,
        event.cpu,
        event.time_ns,
        event.task,
        event.stack,
    )


def _through(event: Event) -> str:
    match event.kind:
        case Kind.CALLED | Kind.BH_ENABLED:
            return f": {event.text}"
        case Kind.ALLOCATED:
            return f": {gfp.name(event.a)} by {event.text}"
        case Kind.SCHEDULED:
            return " (preempted)" if event.a else " (it slept)"
        case Kind.PREEMPTIBLE:
            return f": preempt_count {event.a:#x}"
        case Kind.DISAGREES:
            return f": {event.a:#x}, said to be {event.b:#x}"
        case _:
            return ""


# ---- lifecycle ---------------------------------------------------------------

_LIFE = {
    Kind.AFTER_STOP: "a callback ran after the runtime was stopped",
    Kind.BEFORE_ARM: "a callback ran before the runtime was armed",
}

_NEXT: dict[Kind | None, frozenset[Kind]] = {
    None: frozenset({Kind.CREATE}),
    Kind.CREATE: frozenset({Kind.ARM, Kind.STOP}),
    Kind.ARM: frozenset({Kind.RESUME, Kind.STOP}),
    Kind.RESUME: frozenset({Kind.YIELD}),
    Kind.YIELD: frozenset({Kind.RESUME, Kind.STOP}),
    Kind.STOP: frozenset(),
}
# A replacement is told of after the new script took over, which may be resumed already.
_OF_ONE_STATE = frozenset({Kind.RESUME, Kind.YIELD})
_REPLACEABLE = frozenset({Kind.ARM, Kind.RESUME, Kind.YIELD})


def _lifecycle(trace: Trace, gaps: tuple[str, ...]) -> Property:
    violations = [_violation(event, _LIFE) for event in trace.violations if event.kind in _LIFE]
    violations += _unlisted(trace, _LIFE)
    own = list(gaps)
    runtimes = [one for one in trace.runtimes if one not in _late(trace)]
    for runtime in runtimes:
        breaches, gap = _life(trace, runtime)
        violations += breaches
        own += gap
    violations += _open(trace) + _leaks(trace, everything_stopped=not own)
    if not runtimes:
        own.append("no runtime was seen")
    blocks = sum(one.blocks for one in trace.memory.values())
    return Property(
        "lifecycle",
        "every runtime was created, armed, stopped and gave back every byte",
        f"{len(runtimes)} runtimes, {blocks} blocks, "
        f"{sum(one.size_bytes for one in trace.memory.values())} bytes",
        tuple(violations),
        tuple(dict.fromkeys(own)),
    )


def _life(trace: Trace, runtime: int) -> tuple[list[Violation], list[str]]:
    """Check the order of one runtime's events, and what the module says it held."""
    timeline = trace.timeline(runtime)
    states = {event.state for event in timeline if event.kind in _OF_ONE_STATE} or {0}
    violations = [
        one
        for state in sorted(states)
        for one in _life_of_state(
            event
            for event in timeline
            if event.kind not in _OF_ONE_STATE or event.state == state
        )
    ]
    stopped = any(event.kind is Kind.STOP for event in timeline)
    gaps = [] if stopped else [f"runtime {runtime} was not stopped"]
    return list(dict.fromkeys(violations)), gaps


def _life_of_state(events: Iterable[Event]) -> list[Violation]:
    """Check the life of a runtime as one of its Lua states lives it.

    Those of a runtime with one per CPU are resumed at the same time.
    """
    violations = []
    before: Kind | None = None
    for event in events:
        if event.kind is Kind.ERROR:
            continue
        may = (
            before in _REPLACEABLE
            if event.kind is Kind.REPLACE
            else event.kind in _NEXT[before]
        )
        if not may:
            was = before.name.lower() if before is not None else "nothing"
            violations.append(_violation(event, {event.kind: f"{event} after {was}"}))
        if event.kind is Kind.STOP:
            violations += _check_stop(event, before)
        if event.kind is not Kind.REPLACE:
            before = event.kind
    return violations


def _check_stop(event: Event, before: Kind | None) -> list[Violation]:
    violations = []
    if before is Kind.CREATE and event.a != CREATE_FAILED:
        violations.append(_violation(event, {Kind.STOP: "stopped without having been armed"}))
    if event.b:
        violations.append(
            _violation(event, {Kind.STOP: f"the module says it still held {event.b} bytes"})
        )
    return violations


def _open(trace: Trace) -> list[Violation]:
    return [
        Violation("a callback was entered and never left", runtime, hook)
        for runtime, hook in trace.open_callbacks
    ]


def _leaks(trace: Trace, *, everything_stopped: bool) -> list[Violation]:
    """Report what is certainly leaked: a stopped runtime's, or the idle module's."""
    if trace.lost.total:
        return []
    stopped = {event.runtime for event in trace.events if event.kind is Kind.STOP}
    return [
        Violation(
            f"{leak.size_bytes} bytes in {leak.blocks} blocks never freed, allocated by "
            f"{leak.site} ({gfp.name(leak.gfp_flags)})",
            leak.runtime,
        )
        for leak in trace.leaks
        if (leak.runtime in stopped if leak.runtime else everything_stopped)
    ]


# ---- completeness --------------------------------------------------------------


def _completeness(
    trace: Trace, wanted: tuple[Expected, ...], gaps: tuple[str, ...]
) -> Property:
    own = list(gaps)
    if not wanted:
        own.append("nobody said how many packets were sent")
    violations = []
    for one in wanted:
        seen = _seen(trace, one)
        if seen != one.packets and trace.callbacks:
            violations.append(_mismatch(one, seen))
    if trace.lost.total:
        violations = []
    explained = [f"{e.packets} {e.why}" for one in wanted for e in one.explained]
    return Property(
        "completeness",
        "the hooks saw every packet sent, minus what is explained",
        f"{sum(one.sent for one in wanted)} sent, {trace.callbacks} seen"
        + (f", {trace.turned_away} turned away" if trace.turned_away else "")
        + (f", explained: {'; '.join(explained)}" if explained else ""),
        tuple(violations),
        tuple(dict.fromkeys(own)),
    )


def _seen(trace: Trace, wanted: Expected) -> int:
    return sum(
        hook.seen
        for hook in trace.hooks
        if wanted.runtime in {None, hook.runtime} and wanted.hook in {None, hook.hook}
    )


def _mismatch(wanted: Expected, seen: int) -> Violation:
    terms = "".join(f" - {one.packets} ({one.why})" for one in wanted.explained)
    return Violation(
        f"{wanted.sent} packets sent{terms} should be seen, {seen} were",
        wanted.runtime or 0,
        wanted.hook or 0,
    )
