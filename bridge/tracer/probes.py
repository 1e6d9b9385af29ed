"""Where the tracer looks: data, and the kernel's symbols that they refer to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import EnvironmentLacking

MODULE = "lunatik"
HOOK_FUNCTION = "lunatik_hook_run"

MODULE_TRACEPOINTS = (
    "runtime_create",
    "runtime_arm",
    "runtime_resume",
    "runtime_yield",
    "runtime_replace",
    "runtime_stop",
    "runtime_error",
    "runtime_alloc",
    "hook_enter",
    "hook_exit",
)
"""Tracepoints lunatik:*, each with a program on_<name>."""

SCHEDULER_TRACEPOINT = ("sched_switch", "on_sched_switch")

MEMORY_TRACEPOINTS = (
    ("kmalloc", "on_kmalloc"),
    ("kmem_cache_alloc", "on_cache_alloc"),
    ("mm_page_alloc", "on_page_alloc"),
    ("kfree", "on_free"),
    ("kmem_cache_free", "on_free"),
)
"""Attached twice each; program.c says why."""

SLEEPERS: tuple[tuple[str, ...], ...] = (
    ("__cond_resched",),  # might_sleep() of everything so marked, unless preempt=full
    ("mutex_lock", "mutex_lock_nested"),
    ("mutex_lock_interruptible", "mutex_lock_interruptible_nested"),
    ("mutex_lock_killable", "mutex_lock_killable_nested"),
    ("ww_mutex_lock",),
    ("rt_mutex_lock",),
    ("down",),
    ("down_interruptible",),
    ("down_killable",),
    ("down_timeout",),
    ("down_read",),
    ("down_read_killable",),
    ("down_write",),
    ("down_write_killable",),
    ("percpu_down_write",),
    ("schedule",),
    ("schedule_timeout",),
    ("schedule_hrtimeout_range_clock",),
    ("io_schedule",),
    ("wait_for_completion",),
    ("wait_for_completion_timeout",),
    ("wait_for_completion_interruptible",),
    ("wait_woken",),
    ("msleep",),
    ("msleep_interruptible",),
    ("usleep_range_state",),
    ("synchronize_rcu",),
    ("synchronize_rcu_expedited",),
    ("rcu_barrier",),
    ("synchronize_net",),
    ("flush_work",),
    ("__flush_workqueue",),
    ("cancel_work_sync",),
    ("kthread_stop",),
    ("lock_sock_nested",),
    ("vmalloc_noprof", "vmalloc"),
)
"""Functions that may sleep; later names of a row are those of other kernels (6.1, lockdep)."""

BOTTOM_HALVES = (
    ("__local_bh_enable_ip", "local_bh_enable_ip"),
    ("_local_bh_enable", "local_bh_enable_quiet"),
)

ENTRY_PROGRAMS = ("run_entry", "run_return")
LOSSLESS_PROGRAMS = (*(f"on_{name}" for name in MODULE_TRACEPOINTS), "on_sched_switch")
"""With ENTRY_PROGRAMS, the programs of which no run may be missed.

A callback's other kprobes need no such check: the kernel skips a kprobe's program
while another one runs on that CPU, and then it skips the entry function's too.
"""


@dataclass(frozen=True, slots=True)
class Text:
    """The addresses of a module's code, from ``start`` up to but without ``end``."""

    module: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Symbols:
    """What /proc/kallsyms says, as far as the tracer needs it."""

    addresses: dict[str, int]
    functions: tuple[tuple[int, str, str], ...]

    def find(self, names: Iterable[str]) -> str | None:
        """Return the first of the names that the kernel has, or None."""
        return next((name for name in names if name in self.addresses), None)

    def hook_function(self) -> str | None:
        """Return the hook's entry function, under a compiler's suffix if it has one."""
        found = (
            name
            for _, name, owner in self.functions
            if owner == MODULE and name.split(".")[0] == HOOK_FUNCTION
        )
        return next(found, None)

    def text(self, module: str) -> Text | None:
        """Return the range of a module's code, or None if it has none.

        It ends where other code begins. The last function's end is not known, but
        it has no more than 64 KiB to itself.
        """
        starts = [address for address, _, owner in self.functions if owner == module]
        if not starts:
            return None
        first, last = min(starts), max(starts)
        others = (at for at, _, owner in self.functions if at > first and owner != module)
        return Text(module, first, min(last + 0x10000, *others, last + 0x10000))

    def per_cpu_offset(self) -> int:
        """Return the address of the CPUs' offsets. Raises EnvironmentLacking."""
        address = self.addresses.get("__per_cpu_offset")
        if address is None:
            raise EnvironmentLacking(
                "the kernel has no __per_cpu_offset; only x86-64 is covered"
            )
        return address

    def preempt_count(self) -> int:
        """Return the per-CPU offset of preempt_count. Raises EnvironmentLacking.

        It is a variable of its own up to 6.1 and from 6.15, and lies in struct pcpu_hot,
        8 bytes in, between (arch/x86/include/asm/current.h).
        """
        if "__preempt_count" in self.addresses:
            return self.addresses["__preempt_count"]
        if "pcpu_hot" in self.addresses:
            return self.addresses["pcpu_hot"] + 8
        raise EnvironmentLacking("the kernel has no preempt_count that the tracer knows of")


_MODULE_LINE = re.compile(rb"^([0-9a-f]+) ([tTwW]) (\S+)\t\[(\w+)\]", re.MULTILINE)


def parse_kallsyms(data: bytes, names: Iterable[str]) -> Symbols:
    """Pick the named symbols and every module's functions from kallsyms' text.

    Raises EnvironmentLacking where the kernel hides its addresses.
    """
    wanted = b"|".join(re.escape(name.encode()) for name in names)
    pattern = re.compile(rb"^([0-9a-f]+) [a-zA-Z] (" + wanted + rb")$", re.MULTILINE)
    addresses = {m[2].decode(): int(m[1], 16) for m in pattern.finditer(data)}
    modules = data[data.rfind(b"\n", 0, max(data.find(b"\t["), 0)) + 1 :]  # they come last
    functions = tuple(
        (int(m[1], 16), m[3].decode(), m[4].decode()) for m in _MODULE_LINE.finditer(modules)
    )
    if not any(addresses.values()):
        raise EnvironmentLacking(
            "/proc/kallsyms shows no addresses",
            cure="run as root, and set kernel.kptr_restrict to 0 or 1",
        )
    return Symbols(addresses, functions)


def read_symbols() -> Symbols:
    """Read the running kernel's symbols."""
    names = [name for row in SLEEPERS for name in row]
    names += [name for name, _ in BOTTOM_HALVES]
    names += ["__per_cpu_offset", "pcpu_hot", "__preempt_count"]
    return parse_kallsyms(Path("/proc/kallsyms").read_bytes(), names)


def traced_modules(proc_modules: str) -> tuple[str, ...]:
    """Return lunatik and the modules that use it, from the text of /proc/modules.

    Raises EnvironmentLacking if lunatik is not loaded.
    """
    for line in proc_modules.splitlines():
        name, _, _, users, *_ = line.split()
        if name == MODULE:
            return (MODULE, *(user for user in users.split(",") if user not in {"", "-"}))
    raise EnvironmentLacking(
        "the module lunatik is not loaded", cure="load it first, then start the tracer"
    )
