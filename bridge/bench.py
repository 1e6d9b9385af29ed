"""A bench for policies: module, router topology, traffic and tracer, set up at once.

    with Bench.open(emit) as bench:
        with bench.runtime("dns_block", None) as runtime:
            bench.traffic.ping()
            forwarded = bench.stop(runtime)
        bench.prove(runtime, forwarded)

The slow parts overlap: the tracer is compiled in a thread while scapy is imported
and the topology is built. All imports are late for the same reason.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from bridge.errors import TraceInconclusive
from bridge.events import (
    Counters,
    Event,
    HostFacts,
    Life,
    Network,
    PropertyFacts,
    Proved,
    Stage,
)

if TYPE_CHECKING:
    from pathlib import Path

    from bridge import tracer as tracing
    from bridge.lunatik import Lunatik, Runtime, RuntimeInfo
    from bridge.traffic import Traffic
    from netns import Topology

Emit = Callable[[Event], None]

_DELIVERY_S = 10.0
_IP_TYPES = {0x0800: 4, 0x86DD: 6}
_LIVES = {"create": "created", "arm": "armed", "resume": "resumed", "yield": "yielded"}
_LIVES |= {"stop": "stopped", "error": "error"}
# NFPROTO_*, include/uapi/linux/netfilter.h, of a packet.
_FAMILIES = {2: 4, 10: 6}
# The hooks that meet each forwarded packet before its fate is decided.
_PRE_ROUTING, _FORWARD = 0, 2


class Clock:
    """Seconds since the work began, and the stages it consists of."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Emit how long what the block does took."""
        start = self.seconds
        yield
        self._emit(Stage(name, round(start, 3), round(self.seconds, 3)))


class Recorder:
    """Receives the tracer's events as they arrive: tells of lives, keeps callbacks."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._created: dict[int, int] = {}
        self._events: list[tracing.Event] = []
        self._more = threading.Condition()
        self._notes: deque[str] = deque()

    def note(self, text: str) -> None:
        """Say what the next resume is about; the kernel does not tell its arguments."""
        self._notes.append(text)

    def __call__(self, event: tracing.Event) -> None:
        """Take one event, in the tracer's thread."""
        with self._more:
            self._events.append(event)
            self._more.notify_all()
        name = event.kind.name.lower()
        if name in _LIVES:
            created = self._created.setdefault(event.runtime, event.time_ns)
            elapsed_s = round((event.time_ns - created) / 1e9, 6)
            detail = str(event).removeprefix(name).lstrip(": ")
            if name == "resume" and self._notes:
                detail = self._notes.popleft()
            self._emit(Life(event.runtime, _LIVES[name], elapsed_s, detail))

    def wait_for(
        self, wanted: Callable[[tracing.Event], bool], count: int
    ) -> list[tracing.Event]:
        """Return the events that are wanted once there are ``count`` of them.

        Returns those that came where they do not all come within ten seconds: then
        some were not traced, and the caller's comparison says so.
        """
        deadline = time.monotonic() + _DELIVERY_S
        with self._more:
            while True:
                found = [event for event in self._events if wanted(event)]
                left_s = deadline - time.monotonic()
                if len(found) >= count or left_s <= 0:
                    return sorted(found, key=lambda event: event.time_ns)
                self._more.wait(left_s)


@dataclass(slots=True)
class Forwarded:
    """Packets that reached the router, by IP version; ``late`` ones while it was stopped."""

    sure: dict[int, int] = field(default_factory=dict)
    late: dict[int, int] = field(default_factory=dict)

    def between(self, versions: list[int], seen: int) -> bool:
        """Whether a hook of these IP versions can have seen so many."""
        sure = sum(self.sure.get(version, 0) for version in versions)
        late = sum(self.late.get(version, 0) for version in versions)
        return sure <= seen <= sure + late


class Bench:
    """What open() set up; see the module's text."""

    def __init__(self, emit: Emit, clock: Clock) -> None:
        self.emit = emit
        self.clock = clock
        self.recorder = Recorder(emit)
        self.lunatik: Lunatik
        self.topology: Topology
        self.traffic: Traffic
        self._tracer: tracing.Tracer

    @classmethod
    @contextmanager
    def open(
        cls,
        emit: Emit,
        *,
        module: Path | None = None,
        clock: Clock | None = None,
        callback_events: bool = True,
    ) -> Iterator[Self]:
        """Set everything up, and take it down again whatever happens.

        ``module`` is the module to load where none is loaded. Raises what its parts
        raise: ModuleError, TopologyError, EnvironmentLacking, TraceInconclusive.
        """
        bench = cls(emit, clock or Clock(emit))
        with ExitStack() as stack:
            with bench.clock.stage("load the module"):
                from bridge.lunatik import Lunatik  # noqa: PLC0415 (slow to import)

                bench.lunatik = stack.enter_context(Lunatik.load(module))
            tracer = _TracerStart(bench, callback_events=callback_events)
            stack.callback(tracer.close)
            bench._build(stack)
            bench._tracer = tracer.join()
            yield bench
            with bench.clock.stage("take down"):
                stack.close()

    def _build(self, stack: ExitStack) -> None:
        with self.clock.stage("build the topology"):
            from netns import Topology  # noqa: PLC0415 (slow to import)

            self.topology = stack.enter_context(Topology.router())
        with self.clock.stage("import scapy"):
            from bridge.traffic import Traffic, dns_question  # noqa: PLC0415 (slow to import)

            dns_question("example")
        self.traffic = stack.enter_context(Traffic(self.topology))

    @contextmanager
    def runtime(self, name: str, source: str | bytes | None) -> Iterator[Runtime]:
        """Create a non-sleepable runtime in the router's namespace."""
        netns = self.topology["router"].netns
        with self.lunatik.runtime(name, source=source, sleep=False, netns=netns) as runtime:
            yield runtime

    def resume(self, runtime: Runtime, *args: str) -> None:
        """Resume the runtime, and have the arguments shown in its life."""
        self.recorder.note(" ".join(args))
        runtime.resume(*args)

    def stop(self, runtime: Runtime) -> Forwarded:
        """Stop the runtime; return how many packets reached the router until then."""
        sure = self._arrivals()
        self.emit(counters(runtime.info()))
        runtime.stop()
        late = {version: n - sure[version] for version, n in self._arrivals().items()}
        return Forwarded(sure, late)

    def drain(self) -> None:
        """Read what the captures hold, so that none of them overflows."""
        self._arrivals()

    def arrivals_of_stopped(self) -> Forwarded:
        """Return how many packets reached the router, for a runtime others stopped."""
        arrived = self._arrivals()
        return Forwarded(dict.fromkeys(arrived, 0), arrived)

    def _arrivals(self) -> dict[int, int]:
        counts = dict.fromkeys(_IP_TYPES.values(), 0)
        for frame in self.traffic.frames:
            if frame.host == "router" and frame.ethertype in _IP_TYPES:
                counts[_IP_TYPES[frame.ethertype]] += 1
        return counts

    def prove(
        self, runtime_id: int, forwarded: Forwarded, *, every_family: bool = True
    ) -> Proved:
        """End the trace, judge it and emit the proof. The runtime has to be stopped.

        ``every_family`` says that the policy's hook takes IPv4 and IPv6.
        """
        from bridge import tracer as tracing  # noqa: PLC0415 (slow to import)

        with self.clock.stage("judge the trace"):
            try:
                trace = self._tracer.finish()
                expected = _expected(trace, runtime_id, forwarded, every_family=every_family)
                proved = _proved(trace, tracing.prove(trace, expected), expected)
            except TraceInconclusive as error:
                proved = _unproved(error)
        self.emit(proved)
        return proved


class _TracerStart:
    """A tracer on its way, in a thread of its own."""

    def __init__(self, bench: Bench, *, callback_events: bool) -> None:
        self._bench = bench
        self._callback_events = callback_events
        self._tracer: tracing.Tracer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._start, name="tracer-start")
        self._thread.start()

    def _start(self) -> None:
        try:
            with self._bench.clock.stage("compile the tracer"):
                from bridge.tracer import Tracer  # noqa: PLC0415 (slow to import)

                tracer = Tracer(
                    on_event=self._bench.recorder, callback_events=self._callback_events
                )
                tracer.start()
                self._tracer = tracer
        except BaseException as error:  # noqa: BLE001 (raised again by join)
            self._error = error

    def join(self) -> tracing.Tracer:
        """Return the tracer once it watches; raises what its start raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._tracer is not None
        return self._tracer

    def close(self) -> None:
        """Detach whatever is attached."""
        self._thread.join()
        if self._tracer is not None:
            self._tracer.close()


def counters(info: RuntimeInfo) -> Counters:
    """Return the event that tells what the module says of a runtime."""
    return Counters(
        info.id,
        info.name,
        info.state.name.lower(),
        info.hooks,
        info.calls,
        info.errors,
        info.memory_bytes,
        info.last_error,
    )


def network() -> Network:
    """Return the event that tells of the topology, before it is built."""
    from netns.plan import chain, drawing  # noqa: PLC0415 (slow to import)

    plan = chain("client", "router", "server")
    hosts = tuple(
        HostFacts(name, tuple((one.name, one.ipv4, one.ipv6) for one in plan.interfaces(name)))
        for name in plan.hosts
    )
    return Network(drawing(plan), hosts)


def _expected(
    trace: tracing.Trace, runtime_id: int, forwarded: Forwarded, *, every_family: bool
) -> tracing.Expected | None:
    """Return what the runtime's hook must have seen, None where that is unknown.

    It is known of a policy with one hook that packets meet before their fate is
    decided: a second hook sees only what the first let through. Unless
    ``every_family``, a hook may have been registered for one IP version only, and
    whether it was shows in what it saw.
    """
    hooks = [hook for hook in trace.hooks if hook.runtime == runtime_id]
    if len(hooks) > 1 or any(one.hooknum not in {_PRE_ROUTING, _FORWARD} for one in hooks):
        return None
    seen = sum(hook.seen for hook in hooks)
    versions = list(forwarded.sure)
    if hooks and not every_family:
        only = _FAMILIES.get(hooks[0].pf, 0)
        if forwarded.between([only], seen):
            versions = [only]
    return _counted(runtime_id, forwarded, versions, seen)


def _counted(
    runtime_id: int, forwarded: Forwarded, versions: list[int], seen: int
) -> tracing.Expected:
    from bridge import tracer as tracing  # noqa: PLC0415 (slow to import)

    sure = sum(forwarded.sure[version] for version in versions)
    late = sum(forwarded.late[version] for version in versions)
    # Nobody can say on which side of the stop the late ones were.
    after = sure + late - min(max(seen, sure), sure + late)
    explained = (tracing.Explained(after, "came while it was stopped"),) if after else ()
    return tracing.Expected(sure + late, explained, runtime=runtime_id)


def _proved(
    trace: tracing.Trace, proof: tracing.Proof, expected: tracing.Expected | None
) -> Proved:
    from bridge.tracer import Kind  # noqa: PLC0415 (slow to import)

    counts = trace.violation_counts
    return Proved(
        outcome=proof.outcome.value,
        properties=tuple(
            PropertyFacts(one.name, one.claim, one.outcome.value, one.reasons)
            for one in proof.properties
        ),
        callbacks=trace.callbacks,
        forwarded=expected.packets if expected else None,
        longest_ns=trace.longest_ns,
        atomic_violations=len(proof.atomic.violations),
        sleeping_calls=counts.get(Kind.CALLED, 0) + counts.get(Kind.SCHEDULED, 0),
        sleepers=len(trace.coverage.sleepers),
        allocations=trace.allocations_by_gfp(),
        lost=trace.lost.total,
    )


def _unproved(error: TraceInconclusive) -> Proved:
    reason = (PropertyFacts("trace", "the trace is usable", "inconclusive", (error.message,)),)
    return Proved("inconclusive", reason, 0, None, 0, 0, 0, 0, {}, 0)
