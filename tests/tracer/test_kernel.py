"""The tracer in a real kernel: clean runs are proven, each kind of sabotage is caught."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.errors import LuaError, TraceInconclusive
from bridge.lunatik import GUEST_MODULE, Lunatik
from bridge.netlink import Command, pack_values
from bridge.testing import sanitizers
from bridge.tracer import Event, Kind, Outcome, ProofError, Trace, Tracer, prove

if TYPE_CHECKING:
    from conftest import Sabotage

    from bridge.lunatik import Runtime

pytestmark = pytest.mark.kernel
MAY_SLEEP = pytest.mark.expects_splat(
    "sleeping function called from invalid context", sanitizer=True
)

HONEST = """
local netfilter = require "netfilter"
netfilter.register{
  pf = netfilter.family.IPV4,
  hooknum = netfilter.inet_hooks.LOCAL_OUT,
  priority = netfilter.ip_priority.FILTER,
  hook = function() return netfilter.action.ACCEPT end,
}
"""
# Small modules that nothing needs.
TAKERS = ("dummy", "ifb", "nlmon")
HOLDS, VIOLATED = Outcome.HOLDS, Outcome.VIOLATED


def honest(sabotage: Sabotage, body: str = "") -> Runtime:
    return sabotage.lunatik.runtime("honest", sleep=False, source=HONEST + body)


def trace_policy(sabotage: Sabotage, name: str, packets: int = 2) -> Trace:
    with Tracer() as tracer:
        with sabotage.policy(name):
            sabotage.send(packets)
        return tracer.finish()


def reasons(trace: Trace, packets: int = 2) -> str:
    return "\n".join(r for one in prove(trace, packets).properties for r in one.reasons)


def test_a_clean_run_is_proven_clean(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        with honest(sabotage) as runtime:
            sabotage.send(20)
        trace = tracer.finish()
    prove(trace, 20).require()
    assert trace.verdicts == {"accept": 20}
    assert trace.run_entries == trace.run_returns == 20
    assert [one.kind for one in trace.timeline(runtime.id)] == [
        Kind.CREATE,
        Kind.ARM,
        Kind.STOP,
    ]


def test_memory_is_attributed_to_the_runtime_and_given_back(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        with honest(sabotage) as runtime:
            sabotage.send(1)
        trace = tracer.finish()
    memory = trace.memory[runtime.id]
    assert memory.size_bytes > 10_000
    assert memory.held_bytes == memory.held_blocks == 0


def test_allocations_in_callbacks_are_counted_by_their_flags(sabotage: Sabotage) -> None:
    body = 'local kept = ("x"):rep(100)\nlocal t = {}\n'
    source = body + "hook = function() t[#t + 1] = kept .. #t return 1 end\n"
    source += 'local n = require "netfilter"\nn.register{pf = 2, hooknum = 3, priority = 0, '
    source += "hook = hook}"
    with Tracer() as tracer:
        with sabotage.lunatik.runtime("hoarder", sleep=False, source=source):
            sabotage.send(10)
        trace = tracer.finish()
    prove(trace, 10).require()
    flags = trace.allocations_by_gfp()
    assert flags
    assert all(name.startswith("GFP_ATOMIC") for name in flags)


def test_two_thousand_callbacks_arrive_without_loss(sabotage: Sabotage) -> None:
    seen: list[Event] = []
    with Tracer(on_event=seen.append) as tracer:
        with honest(sabotage):
            sabotage.send(2000)
        trace = tracer.finish()
    prove(trace, 2000).require()
    assert sum(one.kind is Kind.CALLBACK for one in seen) == 2000


def test_callbacks_in_softirq_on_all_cpus_are_proven(sabotage: Sabotage) -> None:
    received = HONEST.replace("LOCAL_OUT", "LOCAL_IN")
    with Tracer(callback_events=False) as tracer:
        with sabotage.lunatik.runtime("received", sleep=False, source=received):
            senders = [sabotage.start_sender(500) for _ in range(3)]
            assert [sender.wait(60) for sender in senders] == [0, 0, 0]
        trace = tracer.finish()
    prove(trace, 1500).require()


def test_the_life_of_a_yielding_runtime_is_followed(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        with honest(sabotage, "coroutine.yield() coroutine.yield()") as runtime:
            sabotage.send(1)
            runtime.resume()
        trace = tracer.finish()
    prove(trace, 1).require()
    kinds = [one.kind for one in trace.timeline(runtime.id)]
    assert kinds == [Kind.CREATE, Kind.ARM, Kind.RESUME, Kind.YIELD, Kind.STOP]


def test_states_resumed_at_the_same_time_are_told_apart(sabotage: Sabotage) -> None:
    work = "while true do for _ = 1, 5000 do end coroutine.yield() end"

    def drive(runtime_id: int) -> None:
        with Lunatik.connect() as lunatik:
            attrs = [("LUNATIK_A_ID", runtime_id), ("LUNATIK_A_VALUES", pack_values(()))]
            for _ in range(100):
                lunatik.request(Command.RESUME, attrs)

    with Tracer() as tracer:
        source = HONEST + work
        with sabotage.lunatik.runtime("many", sleep=False, percpu=True, source=source) as many:
            sabotage.send(1)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(drive, [many.id] * 2))
        trace = tracer.finish()
    prove(trace, 1).require()
    kinds = [one.kind for one in trace.timeline(many.id)]
    assert (Kind.RESUME, Kind.RESUME) in itertools.pairwise(kinds)
    missing = next(one for one in trace.events if one.kind is Kind.YIELD and one.state == 1)
    events = tuple(one for one in trace.events if one is not missing)
    proof = prove(dataclasses.replace(trace, events=events), 1)
    assert "resume after resume" in "\n".join(proof.lifecycle.reasons)


def test_a_creation_that_fails_is_clean(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        with pytest.raises(LuaError):
            honest(sabotage, "error('no')")
        with honest(sabotage):
            sabotage.send(1)
        trace = tracer.finish()
    prove(trace, 1).require()
    assert len(trace.runtimes) == 2


def test_a_proof_survives_json(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        with honest(sabotage):
            sabotage.send(1)
        trace = tracer.finish()
    assert json.loads(json.dumps(trace.to_json()))["callbacks"] == 1
    assert json.loads(json.dumps(prove(trace, 1).to_json()))["outcome"] == "holds"


@pytest.mark.expects_splat("scheduling while atomic")
def test_a_callback_that_sleeps_is_caught(sabotage: Sabotage) -> None:
    trace = trace_policy(sabotage, "sleep")
    assert prove(trace, 2).atomic.outcome is VIOLATED
    assert "may sleep: msleep" in reasons(trace)
    assert "the callback's task was switched away (it slept)" in reasons(trace)


@MAY_SLEEP
@pytest.mark.expects_splat("Invalid wait context", sanitizer=True)
@pytest.mark.kernel(alone=True)
def test_a_callback_that_takes_a_mutex_is_caught(sabotage: Sabotage) -> None:
    trace = trace_policy(sabotage, "mutex")
    assert prove(trace, 2).atomic.outcome is VIOLATED
    assert "may sleep: mutex_lock" in reasons(trace)
    (first, *_) = trace.violations
    # By frame pointers the caller of a function that was just entered is not found.
    caller = "luaD_precall" if sanitizers.present() else "sabotage_mutex"
    assert any(caller in frame for frame in first.stack)


@MAY_SLEEP
@pytest.mark.kernel(alone=True)
def test_a_callback_that_allocates_with_gfp_kernel_is_caught(sabotage: Sabotage) -> None:
    trace = trace_policy(sabotage, "allocate")
    assert prove(trace, 2).atomic.outcome is VIOLATED
    assert "GFP_KERNEL by sabotage_allocate" in reasons(trace)
    assert trace.allocations_by_gfp()["GFP_KERNEL"] == 2


def test_a_callback_that_enables_bottom_halves_is_caught(sabotage: Sabotage) -> None:
    trace = trace_policy(sabotage, "bh")
    assert prove(trace, 2).atomic.outcome is VIOLATED
    assert "enabled bottom halves: __local_bh_enable_ip" in reasons(trace)


@MAY_SLEEP
@pytest.mark.expects_splat("inconsistent lock state", sanitizer=True)
@pytest.mark.expects_splat("lockdep is turned off", sanitizer=True, maybe=True)
@pytest.mark.kernel(alone=True)
def test_what_a_hard_interrupt_does_is_not_held_against_the_callback(
    sabotage: Sabotage,
) -> None:
    trace = trace_policy(sabotage, "interrupt")
    prove(trace, 2).require()
    assert trace.foreign > 0
    assert "GFP_KERNEL" in trace.allocations_by_gfp(in_callback=False)


def test_without_events_of_callbacks_their_counts_prove_the_same(sabotage: Sabotage) -> None:
    with Tracer(callback_events=False) as tracer:
        with honest(sabotage):
            sabotage.send(30)
        trace = tracer.finish()
    prove(trace, 30).require()
    assert not [one for one in trace.events if one.kind is Kind.CALLBACK]
    assert sum(trace.durations.values()) == 30


def test_a_leak_is_caught_with_its_size_and_its_runtime(sabotage: Sabotage) -> None:
    trace = trace_policy(sabotage, "leak")
    proof = prove(trace, 2)
    assert proof.atomic.outcome is HOLDS
    assert proof.lifecycle.outcome is VIOLATED
    (leak,) = trace.leaks
    assert (leak.runtime, leak.blocks) == (trace.runtimes[0], 2)
    assert "sabotage_leak" in leak.site


@pytest.mark.stock_kernel("it has no other module that could take the place")
def test_names_are_right_after_a_module_was_loaded_again(sabotage: Sabotage) -> None:
    text = Path("/sys/module/lunatik_sabotage/sections/.text")
    module = GUEST_MODULE.with_name("lunatik_sabotage.ko")
    before = text.read_text()
    name = r"sabotage_leak\+0x[0-9a-f]+ \[lunatik_sabotage\]"
    (leak,) = trace_policy(sabotage, "leak").leaks
    assert re.fullmatch(name, leak.site)
    subprocess.run(["rmmod", "lunatik_sabotage"], check=True)
    subprocess.run(["modprobe", "-a", *TAKERS], check=True)
    try:
        subprocess.run(["insmod", module], check=True)
        assert text.read_text() != before, "another module should have its old place"
        (leak,) = trace_policy(sabotage, "leak").leaks
        assert re.fullmatch(name, leak.site)
    finally:
        subprocess.run(["modprobe", "-r", "-a", *TAKERS], check=True)


def test_a_callback_after_stop_is_caught(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        with honest(sabotage) as runtime:
            sabotage.send(1)
        sabotage.call_late(runtime, 1)
        trace = tracer.finish()
    proof = prove(trace, 1)
    assert "a callback ran after the runtime was stopped" in str(proof.lifecycle.reasons)
    assert "hook_enter outside the hook's function" in str(proof.atomic.reasons)


def test_a_wrong_number_of_packets_is_caught(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        with honest(sabotage):
            sabotage.send(3)
        trace = tracer.finish()
    with pytest.raises(ProofError, match="4 packets sent should be seen, 3 were"):
        prove(trace, 4).require()


@pytest.mark.stock_kernel("it sends too slowly to overrun the ring")
def test_a_ring_too_small_makes_the_proof_inconclusive(sabotage: Sabotage) -> None:
    with Tracer(ring_pages=1) as tracer:
        with honest(sabotage):
            sabotage.send(500)
        trace = tracer.finish()
    assert trace.lost.events > 0
    with pytest.raises(TraceInconclusive, match="lost records"):
        prove(trace, 500).require()


def test_a_tracer_that_comes_late_is_inconclusive(sabotage: Sabotage) -> None:
    with Tracer() as tracer, honest(sabotage):
        tracer.finish()
    with honest(sabotage) as runtime, Tracer() as tracer:
        sabotage.send(2)
        runtime.stop()
        trace = tracer.finish()
    with pytest.raises(TraceInconclusive, match="was there before the tracer"):
        prove(trace, 2).require()


def test_a_runtime_still_alive_is_inconclusive(sabotage: Sabotage) -> None:
    with Tracer() as tracer, honest(sabotage):
        sabotage.send(1)
        trace = tracer.finish()
    with pytest.raises(TraceInconclusive, match="was not stopped"):
        prove(trace, 1).require()


def test_a_tracer_that_saw_nothing_is_inconclusive(sabotage: Sabotage) -> None:
    with Tracer() as tracer:
        sabotage.send(3)
        trace = tracer.finish()
    with pytest.raises(TraceInconclusive, match="no callback was seen"):
        prove(trace, 3).require()


def test_an_error_of_the_live_callback_is_raised_by_finish(sabotage: Sabotage) -> None:
    def refuse(event: Event) -> None:
        raise RuntimeError(str(event.kind))

    with Tracer(on_event=refuse) as tracer:
        with honest(sabotage):
            sabotage.send(1)
        with pytest.raises(RuntimeError):
            tracer.finish()
