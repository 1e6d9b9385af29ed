"""What the demonstration does, in the kernel it runs on.

    perform(Emitter(sys.stdout))

loads the policy at the router, sends every class of packets, changes the policy while
questions flow, stops it, and has the trace of all that judged.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bridge.bench import Bench, Clock, Emit, network
from bridge.demo.stream import (
    Question,
    Resume,
    Stream,
    arrived,
    questions,
    stretches,
    switch,
)
from bridge.errors import TraceInconclusive
from bridge.events import End, Packets, Phase, Policy
from bridge.mix import ACCEPTED, DROPPED, VERSIONS, PacketClass, send

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridge.lunatik import Runtime
    from bridge.tracer import Event

POLICY = "dns_block"
LISTED, LATE = "bad.example", "late.example"

_ALLOWED = ("good.example", "www.good.example", "notbad.example", "example")
_BLOCKED = (LISTED, "www.bad.example", "a.b.c.bad.example", "BAD.Example")

WHILE_LISTED = (
    PacketClass("tcp", "TCP connection, 2,000 bytes echoed", "tcp", ACCEPTED, count=2),
    PacketClass("ping", "echo request and reply", "ping", ACCEPTED, count=3),
    PacketClass("allowed", "DNS question, name not listed", "dns", ACCEPTED, names=_ALLOWED),
    PacketClass("listed", "DNS question, listed or below it", "dns", DROPPED, names=_BLOCKED),
    PacketClass("port", "the same to another port", "dns", ACCEPTED, names=_BLOCKED, port=5353),
)
WHILE_CHANGING = (
    (f"before resume block {LATE}", ACCEPTED),
    ("after it", DROPPED),
    (f"after resume allow {LATE}", ACCEPTED),
)
AFTER_STOP = (
    PacketClass("stopped", "DNS question, formerly listed", "dns", ACCEPTED, names=_BLOCKED),
)
CALLS = (("block", LATE), ("allow", LATE))
_STRETCH = 30


def expectations() -> dict[str, str | None]:
    """Return what is expected of each class, by its key: what has to be seen to pass."""
    wanted = {
        one.key_of(version): one.expected
        for one in (*WHILE_LISTED, *AFTER_STOP)
        for version in VERSIONS
    }
    stream = {
        _stream_key(number): verdict for number, (_, verdict) in enumerate(WHILE_CHANGING)
    }
    return wanted | stream


def perform(emit: Emit, *, module: Path | None = None, source: str | None = None) -> None:
    """Do everything and emit it event by event.

    ``module`` is the module to load where none is loaded, ``source`` a policy to take
    the place of the real one. Raises what Bench.open() and the policy raise.
    """
    clock = Clock(emit)
    emit(network())
    emit(_policy(source))
    with Bench.open(emit, module=module, clock=clock) as bench:
        with bench.traffic.dns_server(), bench.runtime(POLICY, source) as runtime:
            with clock.stage("send every class"):
                bench.resume(runtime, "block", LISTED)
                _send_all(bench, f"{LISTED} is listed", WHILE_LISTED)
            with clock.stage("change it under traffic"):
                _change_under_traffic(bench, runtime)
            forwarded = bench.stop(runtime)
            with clock.stage("send after the stop"):
                _send_all(bench, "the runtime is stopped", AFTER_STOP)
        bench.prove(runtime.id, forwarded)
    emit(End(round(clock.seconds, 3)))


def _policy(source: str | None) -> Policy:
    from bridge.lunatik import LUA_ROOT  # noqa: PLC0415 (slow to import)

    text = source if source is not None else (LUA_ROOT / f"{POLICY}.lua").read_text()
    return Policy(POLICY, text, "non-sleepable, in the router's network namespace")


def _send_all(bench: Bench, title: str, classes: Sequence[PacketClass]) -> None:
    bench.emit(Phase(title))
    for one in classes:
        for version in VERSIONS:
            bench.emit(send(bench.traffic, one, version))


def _change_under_traffic(bench: Bench, runtime: Runtime) -> None:
    bench.emit(Phase(f"{LATE} is listed, then allowed again, while questions for it flow"))
    with Stream(bench.topology, LATE) as stream:
        stream.wait_for(_STRETCH)
        for call in CALLS:
            bench.resume(runtime, *call)
            stream.wait_for(_STRETCH)
    bench.traffic.ping()  # follows the stream over the same links: all of it is through
    delivered = arrived(bench.traffic.frames, stream.ports)
    asked = questions(stream.sent, _callbacks(bench, runtime, stream), delivered)
    resumes = _resumes(bench, runtime, stream)
    for number, part in enumerate(stretches(asked, resumes)):
        bench.emit(_stretch(number, part))
    for resume in resumes:
        bench.emit(switch(stream.sent, asked, resume))


def _callbacks(bench: Bench, runtime: Runtime, stream: Stream) -> list[Event]:
    def wanted(event: Event) -> bool:
        return (
            event.kind.name == "CALLBACK"
            and event.runtime == runtime.id
            and event.time_ns >= stream.start_ns
            and event.length_bytes in stream.lengths_bytes
        )

    return bench.recorder.wait_for(wanted, stream.sent)


def _resumes(bench: Bench, runtime: Runtime, stream: Stream) -> list[Resume]:
    def wanted(event: Event) -> bool:
        of_stream = event.runtime == runtime.id and event.time_ns >= stream.start_ns
        return of_stream and event.kind.name in {"RESUME", "YIELD"}

    events = bench.recorder.wait_for(wanted, 2 * len(CALLS))
    if [event.kind.name for event in events] != ["RESUME", "YIELD"] * len(CALLS):
        raise TraceInconclusive("the trace does not show the resumes that were made")
    pairs = zip(CALLS, events[::2], events[1::2], strict=True)
    return [
        Resume(" ".join(("resume", *call)), begin.time_ns, end.time_ns)
        for call, begin, end in pairs
    ]


def _stretch(number: int, part: Sequence[Question]) -> Packets:
    title, expected = WHILE_CHANGING[number]
    seen = Counter(one.fate for one in part)
    return Packets(
        _stream_key(number), title, 0, len(part), expected, dict(sorted(seen.items()))
    )


def _stream_key(number: int) -> str:
    return f"stream/{number}"
