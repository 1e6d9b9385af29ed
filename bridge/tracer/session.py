"""The tracer itself: attach, consume events, and hand back a Trace."""

from __future__ import annotations

import os
import platform
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from bridge.errors import EnvironmentLacking, TraceInconclusive, UsageError
from bridge.tracer import probes
from bridge.tracer.program import Program, borrow
from bridge.tracer.trace import (
    Allocation,
    Coverage,
    Event,
    HookCount,
    Kind,
    Leak,
    Losses,
    Memory,
    Trace,
    verdict_name,
)

_EVENT = struct.Struct("=QIIIIIiQQQ")
_SOURCES = ("kmalloc", "kmem_cache_alloc", "page")
_CALIBRATED = 1 << 32
_CONSUME_EVERY_S = 0.02
_DRAIN_S = 5.0
_EVENTS_DIRECTORIES = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")


class Tracer:
    """Watches every runtime of the loaded module from ``start`` to ``finish``.

    The module must be loaded, with every module that adds a library to it, before
    the tracer starts; only runtimes created after that are traced. ``on_event`` is
    called from a thread of the tracer with every event as it arrives; its errors are
    raised by finish(). ``ring_pages`` (a power of two) sizes the buffer of events,
    ``callback_events=False`` leaves only counts of callbacks. ``settle_s`` bounds how
    long finish() waits for memory that the kernel frees later (call_rcu).

    Raises EnvironmentLacking where bcc, the module or a kernel feature is missing,
    TraceInconclusive where a probe that the proof rests on cannot be attached.
    """

    def __init__(
        self,
        *,
        on_event: Callable[[Event], None] | None = None,
        callback_events: bool = True,
        ring_pages: int = 1024,
        settle_s: float = 2.0,
    ) -> None:
        self._on_event = on_event
        self._callback_events = callback_events
        self._ring_pages = ring_pages
        self._settle_s = settle_s
        self._borrowed: Program | None = None
        self._records: list[bytes] = []
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._coverage = Coverage()

    @property
    def _program(self) -> Program:
        if self._borrowed is None:
            raise UsageError("the tracer does not run")
        return self._borrowed

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- start ----------------------------------------------------------

    def start(self) -> None:
        """Compile and attach every probe; return once all of them watch."""
        if self._borrowed is not None or self._records:
            raise UsageError("a tracer runs once")
        modules = probes.traced_modules(Path("/proc/modules").read_text())
        _check_tracepoints()
        symbols = probes.read_symbols()
        self._borrowed = borrow(*self._flags(symbols))
        try:
            self._program.reset(self._receive)
            self._set_text(symbols, modules)
            self._calibrate()
            self._coverage = self._attach(symbols, modules)
            self._start_consuming()
        except BaseException:
            self.close()
            raise

    def _flags(self, symbols: probes.Symbols) -> tuple[str, ...]:
        return (
            f"-DPER_CPU_OFFSET={symbols.per_cpu_offset():#x}ULL",
            f"-DPREEMPT_COUNT={symbols.preempt_count():#x}ULL",
            f"-DRING_PAGES={self._ring_pages}",
            f"-DCALLBACK_EVENTS={int(self._callback_events)}",
            f"-DSELF={os.getpid()}",
        )

    def _set_text(self, symbols: probes.Symbols, modules: tuple[str, ...]) -> None:
        table = self._program["text"]
        ranges = [text for text in map(symbols.text, modules) if text is not None]
        if not ranges or len(ranges) > len(table):
            raise TraceInconclusive(f"the code of {', '.join(modules)} cannot be watched")
        for index, text in enumerate(ranges):
            table[table.Key(index)] = table.Leaf(text.start, text.end)

    def _calibrate(self) -> None:
        """Measure what a probe itself adds to preempt_count, in a system call of ours."""
        self._program.attach_raw("sys_enter", "calibrate")
        os.getppid()
        self._program.detach_raw()
        own = self._program.counter("own_preempt")
        if not own & _CALIBRATED or own - _CALIBRATED > 7:
            raise TraceInconclusive(f"the kernel's preempt_count cannot be read ({own:#x})")

    def _attach(self, symbols: probes.Symbols, modules: tuple[str, ...]) -> Coverage:
        hook = symbols.hook_function()
        if hook is None:
            raise TraceInconclusive(f"the module has no function {probes.HOOK_FUNCTION}")
        self._program.attach_kprobe(hook, "run_entry")
        self._program.attach_kretprobe(hook, "run_return")
        for name in probes.MODULE_TRACEPOINTS:
            self._program.attach_raw(name, f"on_{name}")
        self._program.attach_raw(*probes.SCHEDULER_TRACEPOINT)
        for twin in range(2):
            for name, program in probes.MEMORY_TRACEPOINTS:
                self._program.attach_raw(name, program, twin)
        for name, program in probes.BOTTOM_HALVES:
            self._program.attach_kprobe(name, program)
        return self._attach_sleepers(symbols, modules)

    def _attach_sleepers(self, symbols: probes.Symbols, modules: tuple[str, ...]) -> Coverage:
        watched, absent, failed = [], [], []
        for row in probes.SLEEPERS:
            name = symbols.find(row)
            if name is None:
                absent.append(row[0])
                continue
            try:
                self._program.attach_kprobe(name, "sleeper")
                watched.append(name)
            except TraceInconclusive:
                failed.append(name)
        found = (tuple(watched), tuple(absent), tuple(failed))
        return Coverage(*found, modules, platform.release())

    # ---- events ---------------------------------------------------------

    def _start_consuming(self) -> None:
        self._program.set_counter("active", 1)
        self._thread = threading.Thread(target=self._consume, name="tracer", daemon=True)
        self._thread.start()

    def _receive(self, record: bytes) -> None:
        self._records.append(record)
        if self._on_event is not None and self._error is None:
            try:
                self._on_event(self._decode(record))
            except Exception as error:  # noqa: BLE001 (raised again by finish)
                self._error = error

    def _consume(self) -> None:
        """Read events until told to stop; the kernel side never wakes anyone up."""
        while not self._stopping.wait(_CONSUME_EVERY_S):
            self._program.consume()

    def _decode(self, record: bytes) -> Event:
        time_ns, kind, cpu, runtime, hook, task, stack, a, b, c = _EVENT.unpack_from(record)
        text = record[_EVENT.size :].split(b"\0")[0].decode(errors="replace")
        kind = Kind(kind)
        if kind in {Kind.CALLED, Kind.BH_ENABLED}:
            text = self._program.symbol(a or b, offset=not a)
        elif kind is Kind.ALLOCATED:
            text = self._program.symbol(b) if b else "the page allocator"
        names = self._program.stack(stack)
        return Event(kind, time_ns, cpu, runtime, hook, task, a, b, c, text, names)

    # ---- finish ---------------------------------------------------------

    def finish(self) -> Trace:
        """Stop watching and return the trace; it holds all that happened before the call.

        Raises whatever ``on_event`` raised.
        """
        self._settle()
        self._program.set_counter("active", 0)
        undelivered = self._drain()
        trace = self._trace(undelivered)
        self.close()
        if self._error is not None:
            raise self._error
        return trace

    def close(self) -> None:
        """Detach every probe; harmless when repeated."""
        self._stop_thread()
        if self._borrowed is not None:
            self._borrowed.set_counter("active", 0)
            self._borrowed.detach()
            self._borrowed = None

    def _stop_thread(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _settle(self) -> None:
        deadline = time.monotonic() + self._settle_s
        while self._program.counter("outstanding") and time.monotonic() < deadline:
            time.sleep(_CONSUME_EVERY_S)

    def _drain(self) -> int:
        """Consume until every event sent has been read; return how many were not."""
        self._stop_thread()
        deadline = time.monotonic() + _DRAIN_S
        while True:
            self._program.consume()
            missing = self._program.counter("submitted") - len(self._records)
            if missing <= 0 or time.monotonic() > deadline:
                return max(missing, 0)

    # ---- from tables to a trace -----------------------------------------

    def _trace(self, undelivered: int) -> Trace:
        events = sorted((self._decode(one) for one in self._records), key=lambda e: e.time_ns)
        return Trace(
            events=tuple(events),
            hooks=tuple(self._hooks()),
            memory=self._memory(),
            leaks=self._leaks(),
            allocations=tuple(self._allocations()),
            violation_counts=self._violation_counts(),
            run_entries=self._program.counter("entries"),
            run_returns=self._program.counter("returns"),
            open_callbacks=tuple(self._open_callbacks()),
            foreign=self._program.counter("foreign"),
            lost=self._losses(undelivered),
            coverage=self._coverage,
        )

    def _hooks(self) -> Iterator[HookCount]:
        verdicts = self._slots("verdicts")
        durations = self._slots("durations")
        for key, stat in sorted(
            self._program["hooks"].items(), key=lambda i: (i[0].id, i[0].hook)
        ):
            place = (key.id, key.hook)
            yield HookCount(
                *place,
                stat.pf,
                stat.hooknum,
                stat.seen,
                stat.returned,
                stat.failed,
                stat.total_ns,
                stat.longest_ns,
                {verdict_name(slot): n for slot, n in sorted(verdicts.get(place, {}).items())},
                dict(sorted(durations.get(place, {}).items())),
            )

    def _slots(self, name: str) -> dict[tuple[int, int], dict[int, int]]:
        slots: dict[tuple[int, int], dict[int, int]] = {}
        for key, count in self._program[name].items():
            slots.setdefault((key.id, key.hook), {})[key.slot] = count.value
        return slots

    def _memory(self) -> dict[int, Memory]:
        return {
            key.value: Memory(one.blocks, one.bytes, one.freed_blocks, one.freed_bytes)
            for key, one in self._program["memories"].items()
        }

    def _leaks(self) -> tuple[Leak, ...]:
        sums: dict[tuple[int, str, int], list[int]] = {}
        for block in self._program["live"].values():
            place = (block.id, self._program.symbol(block.site), block.gfp)
            total = sums.setdefault(place, [0, 0])
            total[0] += 1
            total[1] += block.bytes
        return tuple(Leak(*place, *total) for place, total in sorted(sums.items()))

    def _allocations(self) -> Iterator[Allocation]:
        for key, stat in self._program["allocations"].items():
            source = _SOURCES[key.source]
            inside = bool(key.in_callback)
            yield Allocation(key.id, key.gfp, source, inside, stat.count, stat.bytes)

    def _violation_counts(self) -> dict[Kind, int]:
        table = self._program["violations"]
        counts = {kind: int(table[table.Key(kind)].value) for kind in Kind if kind.is_violation}
        return {kind: count for kind, count in counts.items() if count}

    def _open_callbacks(self) -> Iterator[tuple[int, int]]:
        for window in self._program["windows"].values():
            for index in range(window.depth):
                yield window.frame[index].id, window.frame[index].hook

    def _losses(self, undelivered: int) -> Losses:
        return Losses(
            events=self._program.counter("dropped"),
            untracked=self._program.counter("untracked"),
            missed=self._program.missed(),
            nested=self._program.counter("too_deep"),
            undelivered=undelivered,
        )


def _check_tracepoints() -> None:
    """Make sure that the tracepoints are the module's; raw ones have no system in front."""
    roots = [root for root in map(Path, _EVENTS_DIRECTORIES) if root.is_dir()]
    if not roots:
        raise EnvironmentLacking(
            "tracefs is not mounted", cure="mount -t tracefs tracefs /sys/kernel/tracing"
        )
    for name in probes.MODULE_TRACEPOINTS:
        systems = [path.parent.name for path in roots[0].glob(f"*/{name}")]
        if systems != [probes.MODULE]:
            raise EnvironmentLacking(
                f"tracepoint {name} is expected in {probes.MODULE} alone, it is in {systems}",
                cure="load the module built from the same tree",
            )
