"""The guest half of `lunabridge run`: one policy, the standard mix, the proof.

The job names the policy, has its source, and says whether it stays loaded after the
mix; then an interrupt ends it, and the trace of everything until then is judged.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge import guesthalf
from bridge.bench import Bench, Clock, Emit, Forwarded, counters, network
from bridge.errors import ModuleError
from bridge.events import Counters, End, Phase, Policy
from bridge.mix import VERSIONS, PacketClass, send

if TYPE_CHECKING:
    from bridge.lunatik import Runtime

NAMES = ("good.example", "bad.example", "www.bad.example")
MIX = (
    PacketClass("tcp", "TCP connection, 2,000 bytes echoed", "tcp", count=2),
    PacketClass("udp", "UDP datagram and its echo", "udp", count=2),
    PacketClass("ping", "echo request and reply", "ping", count=3),
    PacketClass("dns", "DNS question and answer", "dns", names=NAMES),
)
_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What to try: a policy by name and text; ``stay`` keeps it until interrupted."""

    name: str
    source: str
    stay: bool = False


def perform(emit: Emit, trial: Trial, *, module: Path | None = None) -> None:
    """Load the policy, send the mix, stop it and judge the trace; emit all of it.

    Raises LuaError where the script fails to load, and what Bench.open() raises.
    """
    clock = Clock(emit)
    emit(network())
    emit(Policy(trial.name, trial.source, "non-sleepable, in the router's network namespace"))
    with Bench.open(emit, module=module, clock=clock, callback_events=False) as bench:
        with bench.runtime(trial.name, trial.source) as runtime, bench.traffic.dns_server():
            with clock.stage("send the mix"):
                emit(Phase("the standard mix, client to server"))
                for one in MIX:
                    for version in VERSIONS:
                        emit(send(bench.traffic, one, version))
            if trial.stay:
                _stay(bench, runtime)
            forwarded = _stop(bench, runtime)
        bench.prove(runtime.id, forwarded, every_family=False)
    emit(End(round(clock.seconds, 3)))


def _stay(bench: Bench, runtime: Runtime) -> None:
    """Tell of changed counters about once a second, until interrupted or stopped."""
    bench.emit(Phase(f"runtime {runtime.id} stays until Ctrl-C"))
    last: Counters | None = None
    with suppress(KeyboardInterrupt, ModuleError):
        while True:
            now = counters(runtime.info())
            if now != last:
                bench.emit(now)
            last = now
            bench.drain()
            time.sleep(_STEP_S)


def _stop(bench: Bench, runtime: Runtime) -> Forwarded:
    """Stop the runtime, unless somebody else did."""
    try:
        return bench.stop(runtime)
    except ModuleError as error:
        if error.errno != errno.ESRCH:
            raise
        return bench.arrivals_of_stopped()


def _work(emit: Emit, job: Mapping[str, Any]) -> None:
    module = job.get("module")
    trial = Trial(job["name"], job["source"], job["stay"])
    perform(emit, trial, module=Path(module) if module else None)


if __name__ == "__main__":
    sys.exit(guesthalf.main(_work))
