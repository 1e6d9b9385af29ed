"""Which flags and locks each kind of runtime uses, as the kernel's functions tell.

Flags are those of the kernel's kmem:kmalloc, locks are entries of the kernel's lock
functions, and the softirq count is read from the CPU's preempt_count. Of the module
only two functions are known: where its states allocate and where its callbacks run.
"""

from __future__ import annotations

import enum
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.lunatik import GUEST_MODULE, Lunatik, Runtime
from bridge.tracer import gfp, probes

pytestmark = pytest.mark.kernel

MUTEXES = (
    ("mutex_lock", "mutex_lock_nested"),  # the second with lock debugging
    ("mutex_lock_killable", "mutex_lock_killable_nested"),
    ("mutex_lock_interruptible", "mutex_lock_interruptible_nested"),
    ("mutex_trylock", "_mutex_trylock_nest_lock"),
    ("down_read",),
    ("down_write",),
    ("down",),
    ("rt_mutex_lock", "rt_mutex_lock_nested"),
)
SPINLOCKS = (("_raw_spin_lock_bh",), ("_raw_spin_lock",), ("_raw_spin_trylock",))
UNLOCKS = (("mutex_unlock",), ("_raw_spin_unlock_bh",), ("_raw_spin_unlock",))

GFP_KERNEL = 0xCC0
GFP_ATOMIC = 0x820
SOFTIRQ_MASK = 0xFF00


class Kind(enum.IntEnum):
    """The order is that of enum kind in contexts.c."""

    ALLOCATED = 0
    LOCKED = 1
    UNLOCKED = 2
    ENTERED = 3


@dataclass(frozen=True)
class Record:
    kind: Kind
    context: int
    owner: int
    size: int
    gfp: int
    softirq: int
    in_callback: bool
    function: str

    @property
    def is_sleeping_lock(self) -> bool:
        return self.kind is Kind.LOCKED and any(self.function in row for row in MUTEXES)


@dataclass(frozen=True)
class Seen:
    """What happened, in its order; ``owner`` of a lock is its address."""

    records: list[Record]

    def of(self, kind: Kind) -> list[Record]:
        return [one for one in self.records if one.kind is kind]

    @property
    def allocations(self) -> list[Record]:
        return self.of(Kind.ALLOCATED)

    def holding(self) -> Iterator[tuple[Record, set[str]]]:
        """Each allocation, and the functions that took its state's locks before it.

        A state's locks lie in the structure that lunatik_allocate() is told of.
        """
        held: dict[tuple[int, int], str] = {}
        for one in self.records:
            place = (one.context, one.owner)
            if one.kind is Kind.LOCKED:
                held[place] = one.function
            elif one.kind is Kind.UNLOCKED:
                held.pop(place, None)
            elif one.kind is Kind.ALLOCATED:
                yield (
                    one,
                    {
                        function
                        for (context, lock), function in held.items()
                        if context == one.context and one.owner <= lock < one.owner + one.size
                    },
                )


class Watch:
    """The compiled program; during() says what the kernel did in a call."""

    def __init__(self) -> None:
        from bcc import BPF

        names = [name for row in (*MUTEXES, *SPINLOCKS, *UNLOCKS) for name in row]
        names += ["__per_cpu_offset", "pcpu_hot", "__preempt_count"]
        # bcc's own symbols would be remembered, and wrong once a module is loaded anew.
        symbols = probes.parse_kallsyms(Path("/proc/kallsyms").read_bytes(), names)
        self._addresses = symbols.addresses
        self._names = {address: name for name, address in symbols.addresses.items()}
        text = symbols.text(probes.MODULE)
        hook = symbols.hook_function()
        assert text is not None
        assert hook is not None
        flags = {
            "PER_CPU_OFFSET": symbols.per_cpu_offset(),
            "PREEMPT_COUNT": symbols.preempt_count(),
            "TEXT_START": text.start,
            "TEXT_END": text.end,
        }
        self._bpf = BPF(
            text=Path(__file__).with_name("contexts.c").read_bytes(),
            cflags=[f"-D{name}={value:#x}ULL" for name, value in flags.items()],
        )
        for function, program in (("lunatik_allocate", b"allocate"), (hook, b"run")):
            self._bpf.attach_kprobe(event=function.encode(), fn_name=program + b"_entry")
            self._bpf.attach_kretprobe(event=function.encode(), fn_name=program + b"_return")
        self._attach(MUTEXES, b"sleeping_lock")
        self._attach(SPINLOCKS, b"spinning_lock")
        self._attach(UNLOCKS, b"unlock")

    def _attach(self, rows: tuple[tuple[str, ...], ...], program: bytes) -> None:
        for row in rows:
            known = [name for name in row if name in self._addresses]
            assert known, f"the kernel has none of {row}"
            for name in known:
                self._bpf.attach_kprobe(event=name.encode(), fn_name=program)

    def during(self, action: Callable[[], object]) -> Seen:
        """Return what happened while ``action`` ran; all of it, or the test fails."""
        for name in (b"count", b"callbacks"):
            self._bpf[name].clear()
        active = self._bpf[b"active"]
        active[active.Key(0)] = active.Leaf(1)
        try:
            action()
        finally:
            active[active.Key(0)] = active.Leaf(0)
        table = self._bpf[b"records"]
        count = self._bpf[b"count"][0].value
        assert count <= len(table), "more happened than was recorded"
        return Seen([self._record(table[index]) for index in range(count)])

    def _record(self, one: Any) -> Record:
        return Record(
            Kind(one.kind),
            one.context,
            one.object,
            one.size,
            one.gfp,
            one.preempt & SOFTIRQ_MASK,
            one.callback > 0,
            self._names[one.function] if one.function else "",
        )

    def close(self) -> None:
        self._bpf.cleanup()


# ---- what each kind is held to ---------------------------------------------


def check_may_wait(seen: Seen) -> None:
    """Every allocation was made with GFP_KERNEL, where waiting is allowed."""
    assert seen.allocations
    for one in seen.allocations:
        assert one.gfp & GFP_KERNEL == GFP_KERNEL, gfp.name(one.gfp)
        assert not one.softirq
        assert not one.in_callback


def check_never_waits(seen: Seen) -> None:
    """Every allocation was made with GFP_ATOMIC, which never reclaims directly."""
    assert seen.allocations
    for one in seen.allocations:
        assert one.gfp & GFP_ATOMIC == GFP_ATOMIC, gfp.name(one.gfp)
        assert not gfp.may_sleep(one.gfp), gfp.name(one.gfp)


def check_under_mutex(seen: Seen) -> None:
    """The state was used under a mutex of its own, and no spinlock."""
    assert seen.allocations
    for one, held in seen.holding():
        assert any(held & set(row) for row in MUTEXES), held
        assert not any(held & set(row) for row in SPINLOCKS), held
        assert not one.softirq


def check_under_spinlock(seen: Seen) -> None:
    """The state was used under a spinlock of its own with bottom halves off."""
    assert seen.allocations
    for one, held in seen.holding():
        assert any(held & set(row) for row in SPINLOCKS), held
        assert not any(held & set(row) for row in MUTEXES), held
        assert one.softirq


def check_callbacks_are_atomic(seen: Seen, packets: int) -> None:
    """Callbacks ran with bottom halves off and nobody took a sleeping lock in one."""
    entered = seen.of(Kind.ENTERED)
    assert len(entered) == packets
    for one in entered:
        assert one.in_callback
        assert one.softirq
        assert one.gfp & SOFTIRQ_MASK, "the module's own word for it differs"
    taken = [one.function for one in seen.records if one.is_sleeping_lock and one.in_callback]
    assert not taken


# ---- fixtures ---------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> Iterator[Lunatik]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with Lunatik.load() as lunatik:
        yield lunatik


@pytest.fixture(scope="module")
def watch(loaded: Lunatik) -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()


GROWING = """
local kept = {}
while true do kept[#kept + 1] = ("x"):rep(100 + #kept) coroutine.yield() end
"""
POLICY = """
local netfilter = require "netfilter"
local kept = {}
for _, hook in ipairs{"LOCAL_OUT", "LOCAL_IN"} do
  netfilter.register{
    pf = netfilter.family.IPV4, hooknum = netfilter.inet_hooks[hook], priority = 0,
    hook = function()
      kept[#kept + 1] = ("y"):rep(100 + #kept)
      return netfilter.action.ACCEPT
    end,
  }
end
"""


def send(packets: int) -> None:
    """Send packets to ourselves, each of which passes LOCAL_OUT and LOCAL_IN."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        for _ in range(packets):
            sender.sendto(b"x", receiver.getsockname())
            receiver.recv(1)


def grown(loaded: Lunatik, watch: Watch, *, sleep: bool) -> Seen:
    """What resuming a runtime of the kind does."""
    with loaded.runtime("growing", source=GROWING, sleep=sleep) as runtime:

        def resume() -> None:
            for _ in range(20):
                runtime.resume()

        return watch.during(resume)


def created(loaded: Lunatik, watch: Watch, *, sleep: bool) -> Seen:
    """What creating a runtime of the kind does."""
    made: list[Runtime] = []
    seen = watch.during(
        lambda: made.append(loaded.runtime("growing", source=GROWING, sleep=sleep))
    )
    made[0].stop()
    return seen


def called(loaded: Lunatik, watch: Watch, source: str = POLICY, packets: int = 30) -> Seen:
    """What the callbacks of packets sent to ourselves do."""
    with loaded.runtime("policy", source=source, sleep=False):
        return watch.during(lambda: send(packets))


# ---- the claims -------------------------------------------------------------


def test_a_sleepable_runtime_allocates_with_gfp_kernel(loaded, watch):
    check_may_wait(created(loaded, watch, sleep=True))
    check_may_wait(grown(loaded, watch, sleep=True))


def test_a_non_sleepable_runtime_allocates_with_gfp_atomic(loaded, watch):
    check_never_waits(created(loaded, watch, sleep=False))
    check_never_waits(grown(loaded, watch, sleep=False))
    callbacks = called(loaded, watch)
    check_never_waits(callbacks)
    assert all(one.in_callback for one in callbacks.allocations)


def test_a_sleepable_runtime_is_entered_under_its_mutex(loaded, watch):
    check_under_mutex(grown(loaded, watch, sleep=True))


def test_a_non_sleepable_runtime_is_entered_under_its_spinlock(loaded, watch):
    check_under_spinlock(grown(loaded, watch, sleep=False))
    check_under_spinlock(called(loaded, watch))


def test_callbacks_run_with_bottom_halves_off_and_take_no_sleeping_lock(loaded, watch):
    check_callbacks_are_atomic(called(loaded, watch, packets=30), packets=60)


@pytest.mark.parametrize(
    ("kind", "check"),
    [((), check_may_wait), ((True,), check_may_wait), ((False,), check_never_waits)],
    ids=["default", "true", "false"],
)
def test_lua_chooses_the_kind_of_the_runtimes_it_creates(loaded, watch, kind, check):
    source = 'keep = lunatik.runtime("echo", coroutine.yield()) coroutine.yield()'
    with loaded.runtime("creator", source=source) as creator:
        seen = watch.during(lambda: creator.resume(*kind))
    (child,) = {one.owner for one in seen.allocations} - {_creator(seen)}
    check(Seen([one for one in seen.records if one.owner == child]))


def _creator(seen: Seen) -> int:
    """The state whose lock is taken; nobody else knows the new one."""
    (owner,) = {one.owner for one, held in seen.holding() if held}
    return owner


# ---- the checks can fail ----------------------------------------------------


def test_the_checks_fail_for_the_other_kind_of_runtime(loaded, watch):
    sleepable = grown(loaded, watch, sleep=True)
    atomic = grown(loaded, watch, sleep=False)
    for check, wrong in (
        (check_may_wait, atomic),
        (check_never_waits, sleepable),
        (check_under_mutex, atomic),
        (check_under_spinlock, sleepable),
    ):
        with pytest.raises(AssertionError):
            check(wrong)
        with pytest.raises(AssertionError):
            check(Seen([]))


@pytest.mark.expects_splat("sleeping function called", sanitizer=True)
@pytest.mark.expects_splat("Invalid wait context", sanitizer=True)
@pytest.mark.kernel(alone=True)
def test_a_mutex_taken_in_a_callback_is_seen(loaded, watch):
    source = Path(__file__).parents[1] / "sabotage" / "mutex.lua"
    subprocess.run(["insmod", GUEST_MODULE.with_name("lunatik_sabotage.ko")], check=True)
    try:
        seen = called(loaded, watch, source.read_text(), packets=3)
    finally:
        subprocess.run(["rmmod", "lunatik_sabotage"], check=True)
    with pytest.raises(AssertionError, match="mutex"):
        check_callbacks_are_atomic(seen, packets=3)
