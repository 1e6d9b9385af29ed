"""The tracer itself: attach, consume events, and hand back a Trace."""

from __future__ import annotations

import itertools
import os
import platform
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from bridge.errors import EnvironmentLacking, TraceInconclusive
from bridge.tracer import probes
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

COUNTERS = (
    "active",
    "open",
    "entries",
    "returns",
    "submitted",
    "dropped",
    "untracked",
    "too_deep",
    "foreign",
    "outstanding",
    "own_preempt",
)
"""The order of enum counter in program.c."""

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
        self._bpf: Any = None
        self._raw: list[int] = []
        self._programs: dict[str, Any] = {}
        self._records: list[bytes] = []
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._coverage = Coverage()
        self._own_tracepoints: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- start ----------------------------------------------------------

    def start(self) -> None:
        """Compile and attach every probe; return once all of them watch."""
        modules = probes.traced_modules(Path("/proc/modules").read_text())
        _check_tracepoints()
        symbols = probes.read_symbols()
        self._bpf = _compile(self._flags(symbols))
        try:
            self._set_text(symbols, modules)
            self._calibrate()
            self._coverage = self._attach(symbols, modules)
            self._open_ring()
        except BaseException:
            self.close()
            raise

    def _flags(self, symbols: probes.Symbols) -> list[str]:
        return [
            f"-DPER_CPU_OFFSET={_per_cpu_offset(symbols):#x}ULL",
            f"-DPREEMPT_COUNT={_preempt_count(symbols):#x}ULL",
            f"-DRING_PAGES={self._ring_pages}",
            f"-DCALLBACK_EVENTS={int(self._callback_events)}",
            f"-DSELF={os.getpid()}",
        ]

    def _set_text(self, symbols: probes.Symbols, modules: tuple[str, ...]) -> None:
        table = self._bpf["text"]
        for index, module in enumerate(modules):
            text = symbols.text(module)
            if text is not None:
                table[table.Key(index)] = table.Leaf(text.start, text.end)

    def _calibrate(self) -> None:
        """Measure what a probe itself adds to preempt_count, in a system call of ours."""
        self._attach_raw("sys_enter", "calibrate")
        os.getppid()
        os.close(self._raw.pop())
        own = self._counter("own_preempt")
        if not own & _CALIBRATED or own - _CALIBRATED > 7:
            raise TraceInconclusive(f"the kernel's preempt_count cannot be read ({own:#x})")

    def _attach(self, symbols: probes.Symbols, modules: tuple[str, ...]) -> Coverage:
        hook = symbols.hook_function()
        if hook is None:
            raise TraceInconclusive(f"the module has no function {probes.HOOK_FUNCTION}")
        self._attach_kprobe(hook, "run_entry")
        self._attach_kretprobe(hook, "run_return")
        for name in probes.MODULE_TRACEPOINTS:
            self._attach_raw(name, f"on_{name}")
        for name, program in probes.KERNEL_TRACEPOINTS + probes.TWINS:
            self._attach_raw(name, program)
        for name, program in probes.BOTTOM_HALVES:
            self._attach_kprobe(name, program)
        return self._attach_sleepers(symbols, modules)

    def _attach_sleepers(self, symbols: probes.Symbols, modules: tuple[str, ...]) -> Coverage:
        watched, absent, failed = [], [], []
        for row in probes.SLEEPERS:
            name = symbols.find(row)
            if name is None:
                absent.append(row[0])
                continue
            try:
                self._attach_kprobe(name, "sleeper")
                watched.append(name)
            except TraceInconclusive:
                failed.append(name)
        return Coverage(
            tuple(watched), tuple(absent), tuple(failed), modules, platform.release()
        )

    def _program(self, name: str, kind: int) -> Any:
        if name not in self._programs:
            self._programs[name] = self._bpf.load_func(name, kind)
        return self._programs[name]

    def _attach_raw(self, tracepoint: str, program: str) -> None:
        """Attach to a raw tracepoint; bcc's own call allows one program for each."""
        from bcc.libbcc import lib  # noqa: PLC0415 (bcc exists only where it can run)

        function = self._program(program, self._bpf.RAW_TRACEPOINT)
        descriptor = lib.bpf_attach_raw_tracepoint(function.fd, tracepoint.encode())
        if descriptor < 0:
            raise TraceInconclusive(f"probe {tracepoint} failed to attach")
        self._raw.append(descriptor)

    def _attach_kprobe(self, function: str, program: str) -> None:
        try:
            self._program(program, self._bpf.KPROBE)
            self._bpf.attach_kprobe(event=function, fn_name=program)
        except Exception as error:  # bcc raises bare Exception
            raise TraceInconclusive(f"probe {function} failed to attach") from error

    def _attach_kretprobe(self, function: str, program: str) -> None:
        try:
            self._program(program, self._bpf.KPROBE)
            self._bpf.attach_kretprobe(event=function, fn_name=program)
        except Exception as error:  # bcc raises bare Exception
            raise TraceInconclusive(f"probe {function} (return) failed to attach") from error

    # ---- events ---------------------------------------------------------

    def _open_ring(self) -> None:
        self._bpf["events"].open_ring_buffer(self._receive)
        self._set_active(1)
        self._thread = threading.Thread(target=self._consume, name="tracer", daemon=True)
        self._thread.start()

    def _receive(self, _context: Any, data: int, size: int) -> int:
        import ctypes  # noqa: PLC0415

        record = ctypes.string_at(data, size)
        self._records.append(record)
        if self._on_event is not None and self._error is None:
            try:
                self._on_event(self._decode(record))
            except Exception as error:  # noqa: BLE001 (raised again by finish)
                self._error = error
        return 0

    def _consume(self) -> None:
        """Read events until told to stop; the kernel side never wakes anyone up."""
        while not self._stopping.wait(_CONSUME_EVERY_S):
            self._bpf.ring_buffer_consume()

    def _decode(self, record: bytes) -> Event:
        time_ns, kind, cpu, runtime, hook, task, stack, a, b, c = _EVENT.unpack_from(record)
        text = record[_EVENT.size :].split(b"\0")[0].decode(errors="replace")
        kind = Kind(kind)
        if kind in {Kind.CALLED, Kind.BH_ENABLED}:
            text = self._symbol(a or b, offset=not a)
        elif kind is Kind.ALLOCATED:
            text = self._symbol(b) if b else "the page allocator"
        return Event(kind, time_ns, cpu, runtime, hook, task, a, b, c, text, self._stack(stack))

    def _symbol(self, address: int, *, offset: bool = True) -> str:
        name: bytes = self._bpf.ksym(address, show_module=True, show_offset=offset)
        return name.decode().removesuffix(" [kernel]")

    def _stack(self, stack: int) -> tuple[str, ...]:
        if stack < 0:
            return ()
        names = (self._symbol(address) for address in self._bpf["stacks"].walk(stack))
        return tuple(itertools.dropwhile(lambda name: name.startswith("bpf_"), names))

    # ---- finish ---------------------------------------------------------

    def finish(self) -> Trace:
        """Stop watching and return the trace; it holds all that happened before the call.

        Raises whatever ``on_event`` raised.
        """
        self._settle()
        self._set_active(0)
        undelivered = self._drain()
        trace = self._trace(undelivered)
        self.close()
        if self._error is not None:
            raise self._error
        return trace

    def close(self) -> None:
        """Detach every probe; harmless when repeated."""
        self._stop_thread()
        while self._raw:
            os.close(self._raw.pop())
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def _stop_thread(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _settle(self) -> None:
        deadline = time.monotonic() + self._settle_s
        while self._counter("outstanding") and time.monotonic() < deadline:
            time.sleep(_CONSUME_EVERY_S)

    def _drain(self) -> int:
        """Consume until every event sent has been read; return how many were not."""
        self._stop_thread()
        deadline = time.monotonic() + _DRAIN_S
        while True:
            self._bpf.ring_buffer_consume()
            missing = self._counter("submitted") - len(self._records)
            if missing <= 0 or time.monotonic() > deadline:
                return max(missing, 0)

    def _counter(self, name: str) -> int:
        table = self._bpf["counters"]
        return int(table[table.Key(COUNTERS.index(name))].value)

    def _set_active(self, value: int) -> None:
        table = self._bpf["counters"]
        table[table.Key(COUNTERS.index("active"))] = table.Leaf(value)

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
            run_entries=self._counter("entries"),
            run_returns=self._counter("returns"),
            open_callbacks=tuple(self._open_callbacks()),
            foreign=self._counter("foreign"),
            lost=self._losses(undelivered),
            coverage=self._coverage,
        )

    def _hooks(self) -> Iterator[HookCount]:
        verdicts = self._slots("verdicts")
        durations = self._slots("durations")
        for key, stat in sorted(self._bpf["hooks"].items(), key=lambda i: (i[0].id, i[0].hook)):
            place = (key.id, key.hook)
            yield HookCount(
                key.id,
                key.hook,
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
        for key, count in self._bpf[name].items():
            slots.setdefault((key.id, key.hook), {})[key.slot] = count.value
        return slots

    def _memory(self) -> dict[int, Memory]:
        return {
            key.value: Memory(one.blocks, one.bytes, one.freed_blocks, one.freed_bytes)
            for key, one in self._bpf["memories"].items()
        }

    def _leaks(self) -> tuple[Leak, ...]:
        sums: dict[tuple[int, str, int], list[int]] = {}
        for block in self._bpf["live"].values():
            place = (block.id, self._symbol(block.site), block.gfp)
            total = sums.setdefault(place, [0, 0])
            total[0] += 1
            total[1] += block.bytes
        return tuple(Leak(*place, *total) for place, total in sorted(sums.items()))

    def _allocations(self) -> Iterator[Allocation]:
        for key, stat in self._bpf["allocations"].items():
            source = _SOURCES[key.source]
            inside = bool(key.in_callback)
            yield Allocation(key.id, key.gfp, source, inside, stat.count, stat.bytes)

    def _violation_counts(self) -> dict[Kind, int]:
        table = self._bpf["violations"]
        counts = {kind: int(table[table.Key(kind)].value) for kind in Kind if kind.is_violation}
        return {kind: count for kind, count in counts.items() if count}

    def _open_callbacks(self) -> Iterator[tuple[int, int]]:
        for window in self._bpf["windows"].values():
            for index in range(window.depth):
                yield window.frame[index].id, window.frame[index].hook

    def _losses(self, undelivered: int) -> Losses:
        programs = probes.ENTRY_PROGRAMS + probes.LOSSLESS_PROGRAMS
        return Losses(
            events=self._counter("dropped"),
            untracked=self._counter("untracked"),
            missed=sum(_missed(self._programs[name].fd) for name in programs),
            nested=self._counter("too_deep"),
            undelivered=undelivered,
        )


def _compile(flags: list[str]) -> Any:
    try:
        from bcc import BPF  # noqa: PLC0415 (bcc exists only where it can run)
    except ImportError as error:
        raise EnvironmentLacking(
            "bcc is missing",
            cure="install the distribution's python3-bpfcc; the bcc of PyPI is another thing",
        ) from error
    text = (Path(__file__).parent / "program.c").read_text()
    try:
        return BPF(text=text, cflags=flags)
    except Exception as error:  # bcc raises bare Exception
        raise EnvironmentLacking(
            f"bcc cannot compile the tracer's program: {error}",
            cure="install the headers of the running kernel",
        ) from error


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


def _per_cpu_offset(symbols: probes.Symbols) -> int:
    address = symbols.addresses.get("__per_cpu_offset")
    if address is None:
        raise EnvironmentLacking("the kernel has no __per_cpu_offset; only x86-64 is covered")
    return address


def _preempt_count(symbols: probes.Symbols) -> int:
    """Return the per-CPU offset of preempt_count.

    It is a variable of its own up to 6.1 and from 6.15, and lies in struct pcpu_hot,
    8 bytes in, between (arch/x86/include/asm/current.h).
    """
    if "__preempt_count" in symbols.addresses:
        return symbols.addresses["__preempt_count"]
    if "pcpu_hot" in symbols.addresses:
        return symbols.addresses["pcpu_hot"] + 8
    raise EnvironmentLacking("the kernel has no preempt_count that the tracer knows of")


def _missed(descriptor: int) -> int:
    """Return how often the kernel skipped a program, from /proc/self/fdinfo (since 5.12)."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    found = re.search(r"^recursion_misses:\s*(\d+)$", text, re.MULTILINE)
    if found is None:
        raise TraceInconclusive("the kernel does not count missed runs of probes")
    return int(found[1])
