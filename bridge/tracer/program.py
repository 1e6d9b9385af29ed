"""The compiled BPF program: its tables, and what it is attached to.

Compiling takes seconds under emulation and attaching half of one, so a process
keeps what it has compiled for its next tracer. Only here bcc is touched, and it is
imported only when a program is compiled.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.errors import EnvironmentLacking, TraceInconclusive
from bridge.tracer import probes

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

_HASHES = ("runtimes", "windows", "hooks", "verdicts", "durations", "live", "memories")
_MORE_HASHES = ("allocations", "latest", "stacks")
_ARRAYS = ("counters", "violations", "text")

_KERNEL = -1  # instead of a process, where symbols are asked for

Receiver = Callable[[bytes], None]


class Program:
    """One compiled program; use it through borrow() and detach() it to give it back."""

    def __init__(self, flags: tuple[str, ...]) -> None:
        self._bpf = _compile(flags)
        self._loaded: dict[tuple[str, int], Any] = {}
        self._raw: list[int] = []
        self._receiver: Receiver | None = None
        self._missed_before = 0
        self._symbols: Any = None
        self.borrowed = False
        self._table("events").open_ring_buffer(self._receive)

    # ---- attaching --------------------------------------------------------

    def _load(self, name: str, kind: int, twin: int = 0) -> Any:
        """Load a program, once for each twin; bcc forgets the first to load another."""
        if (name, twin) not in self._loaded:
            self._bpf.funcs.pop(name.encode(), None)
            self._loaded[name, twin] = self._bpf.load_func(name.encode(), kind)
        return self._loaded[name, twin]

    def attach_raw(self, tracepoint: str, program: str, twin: int = 0) -> None:
        """Attach to a raw tracepoint; bcc's own call allows one program for each.

        Raises TraceInconclusive.
        """
        from bcc.libbcc import lib  # noqa: PLC0415 (bcc exists only where it can run)

        function = self._load(program, self._bpf.RAW_TRACEPOINT, twin)
        descriptor = lib.bpf_attach_raw_tracepoint(function.fd, tracepoint.encode())
        if descriptor < 0:
            raise TraceInconclusive(f"probe {tracepoint} failed to attach")
        self._raw.append(descriptor)

    def detach_raw(self) -> None:
        """Detach from the tracepoint attached last."""
        os.close(self._raw.pop())

    def attach_kprobe(self, function: str, program: str) -> None:
        """Attach to the entry of a kernel function. Raises TraceInconclusive."""
        self._attach(self._bpf.attach_kprobe, function, program)

    def attach_kretprobe(self, function: str, program: str) -> None:
        """Attach to the return of a kernel function. Raises TraceInconclusive."""
        self._attach(self._bpf.attach_kretprobe, function, program)

    def _attach(self, attach: Callable[..., None], function: str, program: str) -> None:
        try:
            self._load(program, self._bpf.KPROBE)
            attach(event=function.encode(), fn_name=program.encode())
        except Exception as error:  # bcc raises bare Exception
            raise TraceInconclusive(f"probe {function} failed to attach") from error

    def detach(self) -> None:
        """Detach everything; the program can be borrowed again."""
        self._receiver = None
        while self._raw:
            self.detach_raw()
        for name in list(self._bpf.kprobe_fds):
            self._bpf.detach_kprobe_event(name)
        self._forget_symbols()
        self.borrowed = False

    def missed(self) -> int:
        """Return how many runs that matter the kernel skipped since the program was lent."""
        return self._missed() - self._missed_before

    def _missed(self) -> int:
        programs = probes.ENTRY_PROGRAMS + probes.LOSSLESS_PROGRAMS
        loaded = [self._loaded[name, 0].fd for name in programs if (name, 0) in self._loaded]
        return sum(map(_missed, loaded))

    # ---- tables -----------------------------------------------------------

    def __getitem__(self, table: str) -> Any:
        return self._table(table)

    def _table(self, name: str) -> Any:
        return self._bpf[name.encode()]  # bcc deprecates str

    def counter(self, name: str) -> int:
        """Return one of COUNTERS."""
        table = self._table("counters")
        return int(table[table.Key(COUNTERS.index(name))].value)

    def set_counter(self, name: str, value: int) -> None:
        """Set one of COUNTERS."""
        table = self._table("counters")
        table[table.Key(COUNTERS.index(name))] = table.Leaf(value)

    def reset(self, receiver: Receiver) -> None:
        """Forget what an earlier tracer saw; records go to ``receiver`` from now on."""
        self.consume()
        for name in _HASHES + _MORE_HASHES + _ARRAYS:
            self._table(name).clear()
        self._missed_before = self._missed()
        self._receiver = receiver

    def _receive(self, _context: Any, data: int, size: int) -> int:
        if self._receiver is not None:
            self._receiver(ctypes.string_at(data, size))
        return 0

    def consume(self) -> None:
        """Hand every record in the ring to the receiver."""
        self._bpf.ring_buffer_consume()

    def symbol(self, address: int, *, offset: bool = True) -> str:
        """Return the name of a kernel address, and of its module if it has one."""
        name, distance, module = self._known_symbols().resolve(address, demangle=False)
        if name is None:
            return "[unknown]"
        text = name.decode() + (f"+{distance:#x}" if offset else "")
        return text if module == b"kernel" else f"{text} [{module.decode()}]"

    def _known_symbols(self) -> Any:
        """Return the kernel's symbols as they are now.

        Those of bcc's own ksym() are read once in a process, and a module that is
        loaded again is elsewhere.
        """
        from bcc import SymbolCache  # noqa: PLC0415 (bcc exists only where it can run)

        if self._symbols is None:
            self._symbols = SymbolCache(_KERNEL)
        return self._symbols

    def _forget_symbols(self) -> None:
        from bcc.libbcc import lib  # noqa: PLC0415 (bcc exists only where it can run)

        if self._symbols is not None:
            lib.bcc_free_symcache(self._symbols.cache, _KERNEL)
            self._symbols = None

    def stack(self, number: int) -> tuple[str, ...]:
        """Return the functions of a kept stack, innermost first, without the probe's own."""
        if number < 0:
            return ()
        names = (self.symbol(address) for address in self._table("stacks").walk(number))
        return tuple(itertools.dropwhile(lambda name: name.startswith("bpf_"), names))


_programs: dict[tuple[str, ...], Program] = {}


def borrow(*flags: str) -> Program:
    """Return a program compiled with these flags that nobody else uses.

    Raises EnvironmentLacking.
    """
    program = _programs.get(flags)
    if program is None or program.borrowed:
        program = _programs[flags] = Program(flags)
    program.borrowed = True
    return program


def _compile(flags: tuple[str, ...]) -> Any:
    try:
        from bcc import BPF  # noqa: PLC0415 (bcc exists only where it can run)
    except ImportError as error:
        raise EnvironmentLacking(
            "bcc is missing",
            cure="install the distribution's python3-bpfcc; the bcc of PyPI is another thing",
        ) from error
    text = (Path(__file__).parent / "program.c").read_bytes()
    try:
        return BPF(text=text, cflags=list(flags))
    except Exception as error:  # bcc raises bare Exception
        raise EnvironmentLacking(
            f"bcc cannot compile the tracer's program: {error}",
            cure="install the headers of the running kernel",
        ) from error


def _missed(descriptor: int) -> int:
    """Return how often the kernel skipped a program, from /proc/self/fdinfo (since 5.12)."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    found = re.search(r"^recursion_misses:\s*(\d+)$", text, re.MULTILINE)
    if found is None:
        raise TraceInconclusive("the kernel does not count missed runs of probes")
    return int(found[1])
