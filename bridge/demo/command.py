"""`lunabridge demo`: the demonstration, shown and judged as it happens."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import click

from bridge import report
from bridge.demo.scenario import CALLS, expectations
from bridge.events import Event, Stage
from bridge.lab.progress import silent, to_stderr
from bridge.outcome import judge_demo
from bridge.place import DEFAULT_LAB, INTERRUPTED, open_place

_TIMEOUT_S = 300.0
_PASSED = (
    "{classes} classes of packets as expected, the policy switched cleanly, the proof holds"
)


@click.command()
@click.option("--native", is_flag=True, help="Use this machine's own kernel (needs root).")
@click.option(
    "--lab", "lab_name", default=DEFAULT_LAB, show_default=True, help="Which lab that is up."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--timings", is_flag=True, help="Show where the time went.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no colours.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="End the work after this long, with status 124.",
)
def demo(
    *, native: bool, lab_name: str, as_json: bool, timings: bool, quiet: bool, timeout_s: float
) -> int:
    r"""Show a DNS policy in Lua at work in a kernel, with proof.

    A client, a router and a server are built from network namespaces. The policy
    lua/dns_block.lua runs at the router as a non-sleepable runtime; TCP, echo requests
    and DNS questions go through it over IPv4 and IPv6; its list is changed with resume
    while questions flow; it is stopped, and everything passes. The trace of all that
    shows that no callback slept and nothing was left behind.

    It happens in the lab that is up, or in one of its own. Exits with 0 only if
    everything was as expected and the proof holds.

    \b
    Examples:
      lunabridge demo
      lunabridge demo --json | jq .passed
    """
    start = time.monotonic()
    screen = report.Screen(report.console(quiet=quiet))
    progress = silent if quiet else to_stderr
    events: list[Event] = []
    with open_place(native=native, lab_name=lab_name, progress=progress) as place:
        if not as_json:
            screen.title(
                "A DNS policy in Lua, inside the kernel, under real traffic", place.where
            )
        progress("building the network, compiling the tracer")
        for event in place.work("bridge.demo", {}, timeout_s):
            events.append(event)
            if not as_json:
                screen.show(event)
        worked_s = time.monotonic() - start
    if place.interrupted:
        click.echo("lunabridge: interrupted; everything is taken down", err=True)
        return INTERRUPTED
    outcome = judge_demo(events, expectations(), len(CALLS))
    stages = report.whole_timing(place.stages, events, worked_s)
    seconds = time.monotonic() - start
    if as_json:
        flat = [one for one in events if not isinstance(one, Stage)]
        whole = report.as_json(
            [*flat, *(replace(one, start_s=round(one.start_s, 3)) for one in stages)],
            outcome, where=place.where, seconds=seconds,
        )  # fmt: skip
        click.echo(json.dumps(whole))
        return outcome.exit_status
    if timings:
        screen.timings(stages)
    screen.outcome(outcome, _PASSED.format(classes=len(expectations())), seconds)
    return outcome.exit_status
