"""What the tracer saw: plain values, ready for a proof, a screen or JSON."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bridge.lifecycle import OUTCOMES, STOP_REASONS
from bridge.tracer import gfp

VERDICTS = ("drop", "accept", "stolen", "queue", "repeat", "stop")
"""Names of NF_DROP to NF_STOP, include/uapi/linux/netfilter.h."""

CREATE_FAILED = 2
VERDICT_MASK = 0xFF

Key = TypeVar("Key", str, int)


class Kind(enum.IntEnum):
    """What an event says; the order is that of enum kind in program.c."""

    CREATE = 0
    ARM = 1
    RESUME = 2
    YIELD = 3
    STOP = 4
    ERROR = 5
    REPLACE = 6
    CALLBACK = 7
    SCHEDULED = 8
    CALLED = 9
    ALLOCATED = 10
    PREEMPTIBLE = 11
    BH_ENABLED = 12
    AFTER_STOP = 13
    BEFORE_ARM = 14
    UNKNOWN_RUNTIME = 15
    UNCONFIRMED = 16
    UNMATCHED = 17
    DISAGREES = 18

    @property
    def is_violation(self) -> bool:
        """Whether the event reports something that must not be."""
        return self >= Kind.SCHEDULED


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, at ``time_ns`` of the kernel's monotonic clock.

    For a callback the time is that of its start and ``duration_ns`` is measured by
    the tracer, probes included. ``a``, ``b`` and ``c`` are what program.c says of
    the kind; the properties name them. ``stack`` lists the innermost function first.
    """

    kind: Kind
    time_ns: int
    cpu: int
    runtime: int
    hook: int = 0
    task: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    text: str = ""
    stack: tuple[str, ...] = ()

    @property
    def duration_ns(self) -> int:
        """How long the callback ran, tracing included."""
        return self.a

    @property
    def verdict(self) -> str:
        """The callback's verdict by name."""
        return verdict_name(self.b)

    @property
    def failed(self) -> bool:
        """Whether the hook's failure rule chose the verdict."""
        return bool(self.b >> 32)

    @property
    def state(self) -> int:
        """Which of a runtime's Lua states was resumed or yielded: that of which CPU."""
        return self.b

    @property
    def length_bytes(self) -> int:
        """The packet's length when Lua was entered."""
        return self.c & 0xFFFFFFFF

    def __str__(self) -> str:
        return f"{self.kind.name.lower().replace('_', ' ')}{self._detail()}"

    def _detail(self) -> str:
        detail = f" {self.text}" if self.text else ""
        match self.kind:
            case Kind.CREATE:
                detail += f" ({'sleepable' if self.a else 'atomic'}, netns {self.b})"
            case Kind.ARM:
                detail = f" with {self.a} hook{'' if self.a == 1 else 's'}"
            case Kind.YIELD:
                detail = f": {_pick(OUTCOMES, self.a)}"
            case Kind.STOP:
                detail = f": {_pick(STOP_REASONS, self.a)}"
            case Kind.REPLACE:
                detail = f": generation {self.a}, {self.b} hook{'' if self.b == 1 else 's'}"
            case Kind.ERROR:
                detail = f": {self.text}"
            case Kind.CALLBACK:
                rule = " by the failure rule" if self.failed else ""
                detail = f" {self.verdict}{rule} in {self.duration_ns} ns"
        return detail


def _pick(names: tuple[str, ...], index: int) -> str:
    return names[index] if index < len(names) else str(index)


def verdict_name(verdict: int) -> str:
    """Return the name of a Netfilter verdict, without a queue's number."""
    return _pick(VERDICTS, verdict & VERDICT_MASK)


@dataclass(frozen=True, slots=True)
class Memory:
    """Blocks of the kernel's slab that one owner asked for and gave back."""

    blocks: int = 0
    size_bytes: int = 0
    freed_blocks: int = 0
    freed_bytes: int = 0

    @property
    def held_blocks(self) -> int:
        """Blocks not given back."""
        return self.blocks - self.freed_blocks

    @property
    def held_bytes(self) -> int:
        """Bytes not given back."""
        return self.size_bytes - self.freed_bytes


@dataclass(frozen=True, slots=True)
class Leak:
    """Blocks that nobody freed, by who allocated them; ``runtime`` 0 is the module."""

    runtime: int
    site: str
    gfp_flags: int
    blocks: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HookCount:
    """What one hook of one runtime did.

    ``durations`` counts callbacks by the base-2 logarithm of their nanoseconds.
    """

    runtime: int
    hook: int
    pf: int = 0
    hooknum: int = 0
    seen: int = 0
    returned: int = 0
    failed: int = 0
    total_ns: int = 0
    longest_ns: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    durations: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Allocations with the same flags; those outside callbacks are the module's own."""

    runtime: int
    gfp_flags: int
    source: str
    in_callback: bool
    count: int
    size_bytes: int

    @property
    def gfp(self) -> str:
        """The flags by name."""
        return gfp.name(self.gfp_flags)

    @property
    def may_sleep(self) -> bool:
        """Whether the flags allow the allocation to wait."""
        return gfp.may_sleep(self.gfp_flags)


@dataclass(frozen=True, slots=True)
class Losses:
    """What the tracer failed to record; anything but zeros makes a proof inconclusive.

    ``events`` found the ring full, ``untracked`` found a table full, ``missed`` are
    runs of a probe the kernel skipped, ``nested`` callbacks were nested too deep,
    ``undelivered`` events were sent but never read.
    """

    events: int = 0
    untracked: int = 0
    missed: int = 0
    nested: int = 0
    undelivered: int = 0

    @property
    def total(self) -> int:
        """All of them together."""
        return self.events + self.untracked + self.missed + self.nested + self.undelivered


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was watched.

    ``sleepers`` are the functions probed; ``absent`` are those of the table that
    this kernel does not have; ``failed`` could not be probed although it has them.
    """

    sleepers: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything the tracer saw between its start and finish().

    ``run_entries`` and ``run_returns`` are the calls of the hook's entry function
    that the kernel's own kprobe counted.
    ``violation_counts`` is complete where ``events`` holds the first of each kind.
    ``open_callbacks`` are (runtime, hook) pairs that were entered and never left.
    ``foreign`` counts events of hard interrupts that arrived in a callback.
    """

    events: tuple[Event, ...] = ()
    hooks: tuple[HookCount, ...] = ()
    memory: Mapping[int, Memory] = field(default_factory=dict)
    leaks: tuple[Leak, ...] = ()
    allocations: tuple[Allocation, ...] = ()
    violation_counts: Mapping[Kind, int] = field(default_factory=dict)
    run_entries: int = 0
    run_returns: int = 0
    open_callbacks: tuple[tuple[int, int], ...] = ()
    foreign: int = 0
    lost: Losses = field(default_factory=Losses)
    coverage: Coverage = field(default_factory=Coverage)

    @property
    def runtimes(self) -> tuple[int, ...]:
        """Ids of the runtimes that the trace mentions, ascending."""
        ids = {event.runtime for event in self.events if not event.kind.is_violation}
        return tuple(sorted(ids | {hook.runtime for hook in self.hooks}))

    @property
    def callbacks(self) -> int:
        """Callbacks entered."""
        return sum(hook.seen for hook in self.hooks)

    @property
    def turned_away(self) -> int:
        """Packets that the hook's function decided on without entering Lua.

        Its runtime was busy on the same CPU, with a packet that it sent itself.
        """
        return max(self.run_entries - self.callbacks, 0)

    @property
    def longest_ns(self) -> int:
        """The longest callback in nanoseconds, tracing included."""
        return max((hook.longest_ns for hook in self.hooks), default=0)

    @property
    def verdicts(self) -> dict[str, int]:
        """Callbacks by verdict."""
        return _sum(hook.verdicts for hook in self.hooks)

    @property
    def durations(self) -> dict[int, int]:
        """Callbacks by the base-2 logarithm of their nanoseconds."""
        return _sum(hook.durations for hook in self.hooks)

    @property
    def violations(self) -> tuple[Event, ...]:
        """The events that report something that must not be."""
        return tuple(event for event in self.events if event.kind.is_violation)

    def timeline(self, runtime: int) -> tuple[Event, ...]:
        """Return what happened to one runtime's life, callbacks and violations left out."""
        return tuple(
            event
            for event in self.events
            if event.runtime == runtime and event.kind < Kind.CALLBACK
        )

    def allocations_by_gfp(self, *, in_callback: bool = True) -> dict[str, int]:
        """Return how many allocations each set of flags had."""
        counts: dict[str, int] = {}
        for allocation in self.allocations:
            if allocation.in_callback == in_callback:
                counts[allocation.gfp] = counts.get(allocation.gfp, 0) + allocation.count
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return the trace as values that the json module can write."""
        return {
            "runtimes": list(self.runtimes),
            "callbacks": self.callbacks,
            "turned_away": self.turned_away,
            "verdicts": self.verdicts,
            "longest_ns": self.longest_ns,
            "run_entries": self.run_entries,
            "run_returns": self.run_returns,
            "open_callbacks": [list(pair) for pair in self.open_callbacks],
            "foreign": self.foreign,
            "violations": {k.name.lower(): n for k, n in self.violation_counts.items()},
            "hooks": [dataclasses.asdict(hook) for hook in self.hooks],
            "memory": {str(key): dataclasses.asdict(m) for key, m in self.memory.items()},
            "leaks": [dataclasses.asdict(leak) for leak in self.leaks],
            "allocations": [
                dataclasses.asdict(one) | {"gfp": one.gfp, "may_sleep": one.may_sleep}
                for one in self.allocations
            ],
            "lost": dataclasses.asdict(self.lost),
            "coverage": dataclasses.asdict(self.coverage),
            "events": [_event_json(event) for event in self.events],
        }


def _event_json(event: Event) -> dict[str, Any]:
    value = dataclasses.asdict(event)
    value["kind"] = event.kind.name.lower()
    value["says"] = str(event)
    return value


def _sum(counts: Iterable[Mapping[Key, int]]) -> dict[Key, int]:
    total: dict[Key, int] = {}
    for count in counts:
        for key, number in count.items():
            total[key] = total.get(key, 0) + number
    return total
