"""What the two halves of a verb tell each other: one JSON object per line.

The guest half does the work and emits events as things happen; the host half shows
and judges them. Neither half needs the other's libraries.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, TypeAlias

from bridge.errors import BridgeError


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of work, in seconds since its half began."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A host of the topology: rows of interface, IPv4 and IPv6 address."""

    name: str
    interfaces: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Network:
    """The topology, drawn for wide screens, and what narrow ones are told."""

    drawing: str
    hosts: tuple[HostFacts, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """The script under test and how it is loaded."""

    name: str
    source: str
    how: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A heading for the packet classes that follow."""

    title: str


@dataclass(frozen=True, slots=True)
class Packets:
    """What became of one class of packets.

    ``expected`` is a verdict, None where nothing in particular is expected; ``seen``
    counts packets (connections, echo requests, questions) by verdict.
    """

    key: str
    title: str
    version: int
    sent: int
    expected: str | None
    seen: Mapping[str, int]

    @property
    def as_expected(self) -> bool:
        """Whether packets were sent and all met what was expected."""
        if self.expected is None:
            return True
        return self.sent > 0 and {k: n for k, n in self.seen.items() if n} == {
            self.expected: self.sent
        }


@dataclass(frozen=True, slots=True)
class Switch:
    """Where in a stream of questions a resume changed the verdict, by the kernel's clock.

    ``last`` and ``first`` are the numbers of the questions next to it, -1 where there was
    none; ``before_ns`` and ``after_ns`` say how long before the resume and after its yield
    their callbacks began; ``during`` counts callbacks in between, ``untraced`` questions
    without a callback, ``misjudged`` those whose verdict is not what became of them.
    """

    call: str
    last: int
    first: int
    before_ns: int
    after_ns: int
    during: int
    untraced: int
    misjudged: int

    @property
    def is_clean(self) -> bool:
        """Whether each question lies on one side, and the two sides meet."""
        return (
            self.last >= 0
            and self.first == self.last + 1
            and not (self.during or self.untraced or self.misjudged)
        )


@dataclass(frozen=True, slots=True)
class Life:
    """A step in the runtime's life, in seconds since its creation."""

    runtime: int
    what: str
    time_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class Counters:
    """What the module says of the runtime; memory in bytes."""

    runtime: int
    name: str
    state: str
    hooks: int
    calls: int
    errors: int
    memory_bytes: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class PropertyFacts:
    """One property of the proof; ``reasons`` say why it does not hold."""

    name: str
    claim: str
    outcome: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proved:
    """What the tracer established.

    ``forwarded`` counts packets that reached the hook's place by the captures on the
    router's links, None where the hooks of the policy make that no measure of what
    they see. ``longest_ns`` includes the tracing itself; ``allocations`` counts those
    of callbacks by their GFP flags.
    """

    outcome: str
    properties: tuple[PropertyFacts, ...]
    callbacks: int
    forwarded: int | None
    longest_ns: int
    atomic_violations: int
    sleeping_calls: int
    sleepers: int
    allocations: Mapping[str, int]
    lost: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy, by its number in the job, was loaded and stopped; ``message`` says why not."""

    number: int
    hooks: int
    memory_bytes: int
    message: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one packet, by its number in the job.

    ``verdict`` is that of bridge.traffic, or one of bridge.judging; ``sent``, ``arrived``
    and ``answers`` are summaries, ``error`` is that of a callback which failed for it.
    """

    number: int
    verdict: str
    seen_by_policy: bool
    sent: str
    arrived: str | None
    diff: tuple[str, ...]
    answers: tuple[str, ...]
    last_seen: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The guest half failed; the fields are those of the error of that ``name``."""

    name: str
    message: str
    cure: str | None
    traceback: str | None
    status: int


@dataclass(frozen=True, slots=True)
class End:
    """Everything was done; without this event nothing was."""

    seconds: float


Event: TypeAlias = (
    Stage
    | Network
    | Policy
    | Phase
    | Packets
    | Switch
    | Life
    | Counters
    | Proved
    | Loaded
    | Judged
    | Failure
    | End
)
_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (
        Stage, Network, Policy, Phase, Packets, Switch, Life, Counters, Proved, Loaded,
        Judged, Failure, End,
    )
}  # fmt: skip
_NESTED: dict[tuple[str, str], type[Any]] = {
    ("network", "hosts"): HostFacts,
    ("proved", "properties"): PropertyFacts,
}


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as values that the json module can write."""
    return {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}


def from_json(values: Mapping[str, Any]) -> Event:
    """Return the event that to_json() made these values of; raises ValueError for others."""
    fields = dict(values)
    name = fields.pop("event", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"no event: {values!r}")
    for key, value in fields.items():
        nested = _NESTED.get((str(name), key))
        if nested is not None:
            fields[key] = tuple(nested(**_tupled(one)) for one in value)
    try:
        event: Event = kind(**fields)
    except TypeError as error:
        raise ValueError(f"no event: {error}") from error
    return event


def _tupled(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(tuple(one) if isinstance(one, list) else one for one in value)
        if isinstance(value, list)
        else value
        for key, value in values.items()
    }


def failure(error: BridgeError) -> Failure:
    """Return the event that tells the other half of an error."""
    return Failure(
        type(error).__name__,
        error.message,
        error.cure,
        getattr(error, "traceback", None),
        error.exit_status,
    )


@dataclass(slots=True)
class Emitter:
    """Writes events to a stream as they happen, from any thread."""

    stream: IO[str]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: Event) -> None:
        """Write one event and make sure that it leaves."""
        line = json.dumps(to_json(event))
        with self._lock:
            self.stream.write(line + "\n")
            self.stream.flush()
