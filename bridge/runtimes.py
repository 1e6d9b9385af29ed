"""`lunabridge run`, `list`, `stats`, `events` and `stop`: policies in the lab, or natively."""

from __future__ import annotations

import errno
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from bridge import options, policyfile, report
from bridge.errors import BridgeError, ModuleError, UsageError
from bridge.events import Event
from bridge.lab.progress import silent, to_stderr
from bridge.outcome import judge_run
from bridge.place import INTERRUPTED, Place, command_in_lab, open_place

if TYPE_CHECKING:
    from bridge.lunatik import Lunatik
    from bridge.runtime_events import RuntimeEvent

_LOOK_S = 3600.0  # at a time
_TIMEOUT_S = options.TIMEOUT_S
_COLUMNS = (
    "id", "name", "kind", "state", "hooks", "callbacks", "errors", "bytes", "netns",
)  # fmt: skip
_COUNTS = (
    "runtime", "name", "hook", "pf", "hooknum", "priority", "packets", "accepted", "dropped",
    "queued", "errors", "budget", "ns",
)  # fmt: skip


@click.command()
@options.policy("policy")
@click.option("--stay", is_flag=True, help="Keep it loaded after the mix, until Ctrl-C.")
@options.native
@options.lab
@options.json_output
@click.option("--timings", is_flag=True, help="Show where the time went.")
@options.quiet
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help=f"End the work after this long, with status 124 ({_TIMEOUT_S:g} without --stay).",
)
def run(
    policy: str,
    *,
    stay: bool,
    native: bool,
    lab_name: str,
    as_json: bool,
    timings: bool,
    quiet: bool,
    timeout_s: float | None,
) -> int:
    r"""Try a policy on a standard mix of traffic, with proof.

    POLICY is a .lua file, or a name below the Lua root such as dns_block. It is loaded
    as a non-sleepable runtime at the router of a fresh client - router - server
    topology; TCP, UDP, echo requests and DNS questions go through it over IPv4 and
    IPv6, and what became of each is shown. With --stay it remains loaded, for use
    from another terminal: lunabridge list, lunabridge stop, lunabridge lab shell.

    Exits with 1 if the script fails to load, if a callback fails, or if the proof does
    not hold: every callback atomic, every byte given back, every packet seen.

    \b
    Examples:
      lunabridge run drop_port
      lunabridge run --json ./mine.lua
    """
    start = time.monotonic()
    file = policyfile.load(policy)
    if not stay and timeout_s is None:
        timeout_s = _TIMEOUT_S
    screen = None if as_json else report.Screen(report.console(quiet=quiet), show_source=False)
    job = {"name": file.name, "source": file.source, "stay": stay}
    progress = silent if quiet else to_stderr
    with open_place(native=native, lab_name=lab_name, progress=progress) as place:
        if screen:
            screen.title(
                f"The policy {file.name} under the standard mix of traffic", place.where
            )
        events = _follow(place, job, timeout_s, screen)
        worked_s = time.monotonic() - start
    if place.interrupted and not stay:
        click.echo("lunabridge: interrupted; everything is taken down", err=True)
        return INTERRUPTED
    outcome = judge_run(events)
    seconds = time.monotonic() - start
    if screen is None:
        click.echo(
            json.dumps(report.as_json(events, outcome, where=place.where, seconds=seconds))
        )
        return outcome.exit_status
    if timings:
        screen.timings(report.whole_timing(place.stages, events, worked_s))
    screen.outcome(outcome, "no callback failed, the proof holds", seconds)
    return outcome.exit_status


def _follow(
    place: Place, job: dict[str, Any], timeout_s: float | None, screen: report.Screen | None
) -> list[Event]:
    """Have the trial done; show its events as they come, and return them."""
    events = []
    for event in place.work("bridge.trial", job, timeout_s, finish=job["stay"]):
        events.append(event)
        if screen:
            screen.show(event)
    return events


@click.command("list")
@options.native
@options.lab
@options.json_output
def list_runtimes(*, native: bool, lab_name: str, as_json: bool) -> None:
    r"""List the runtimes in the lab that is up.

    A row tells a runtime's number and name, whether it may sleep, where in its life it
    is, its hooks, the callbacks that ran and that failed, the bytes its Lua state
    holds, and the inode number of its network namespace (0 once that is gone).

    \b
    Example:
      lunabridge list --json | jq '.[].name'
    """
    rows = _runtimes_here() if native else _runtimes_in_lab(lab_name)
    if as_json:
        click.echo(json.dumps(rows))
    elif not rows:
        click.echo("no runtime is loaded", err=True)
    else:
        _show(
            _COLUMNS,
            [{**row, "callbacks": row["calls"], "bytes": row["memory_bytes"]} for row in rows],
        )


@contextmanager
def module_here() -> Iterator[Lunatik | None]:
    """Yield the module of this machine's kernel, or None where none is loaded."""
    from bridge.lunatik import Lunatik  # noqa: PLC0415 (slow to import)

    try:
        lunatik = Lunatik.connect()
    except ModuleError as error:
        if error.errno != errno.ENOENT:
            raise
        yield None
        return
    with lunatik:
        yield lunatik


def _runtimes_here() -> list[dict[str, Any]]:
    with module_here() as lunatik:
        return (
            []
            if lunatik is None
            else [
                {
                    **asdict(one),
                    "state": one.state.name.lower(),
                    "kind": "sleepable" if one.sleep else "non-sleepable",
                }
                for one in lunatik.runtimes()
            ]
        )


def _runtimes_in_lab(lab_name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(in_lab(lab_name, ["list", "--native", "--json"]))
    return rows


def in_lab(
    lab_name: str, argv: list[str], on_stdout: Callable[[bytes], None] | None = None
) -> str:
    """Run one of these verbs in the lab that is up; return its standard output.

    With ``on_stdout`` it may run for ever, and that is called with what it writes.

    Raises EnvironmentLacking without a lab; a failure there is raised here.
    """
    if on_stdout:
        status, out, err = command_in_lab(lab_name, argv, timeout_s=None, on_stdout=on_stdout)
    else:
        status, out, err = command_in_lab(lab_name, argv)
    if status:
        message = err.decode(errors="replace").strip().removeprefix("lunabridge: ")
        failure = BridgeError(message or f"the lab's lunabridge ended with status {status}")
        failure.exit_status = status
        raise failure
    return out.decode(errors="replace")


def _show(columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        is_text = name in {"name", "kind", "state"}
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(row[name]) for name in columns))
    report.console(sys.stdout).print(table)


@click.command()
@options.native
@options.lab
@options.json_output
def stats(*, native: bool, lab_name: str, as_json: bool) -> None:
    r"""Show what the hooks of all runtimes have counted, in the lab that is up.

    A row tells a hook's runtime and number, its place (family, hook and priority as
    numbers), the packets it has given a verdict for, by verdict, the callbacks that
    failed, those of them that ran too long, and the ns spent in callbacks while the
    module's parameter timing was on. With --json the histogram of that is there too.

    \b
    Example:
      lunabridge stats --json | jq 'map(.dropped) | add'
    """
    rows = _hooks_here() if native else json.loads(in_lab(lab_name, _STATS))
    if as_json:
        click.echo(json.dumps(rows))
    elif not rows:
        click.echo("no hook is in force", err=True)
    else:
        _show(_COUNTS, [_counts(row) for row in rows])


_STATS = ["stats", "--native", "--json"]


def _hooks_here() -> list[dict[str, Any]]:
    with module_here() as lunatik:
        return [] if lunatik is None else [asdict(hook) for hook in lunatik.hooks()]


def _counts(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "runtime": row["runtime_id"],
        "name": row["runtime_name"],
        "hook": row["number"],
        "budget": row["budget_hits"],
        "ns": row["time_ns"],
    }


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="End after this long; otherwise Ctrl-C does.",
)
@options.native
@options.lab
@options.json_output
def events(*, timeout_s: float | None, native: bool, lab_name: str, as_json: bool) -> None:
    r"""Tell what happens to all runtimes in the lab that is up, as it happens.

    A line tells of one event: a runtime is created, armed, resumed, replaced or
    stopped, or a callback or body of it failed. With --json it is an object.

    \b
    Example:
      lunabridge events --timeout 60
    """
    if native:
        _events_here(timeout_s, as_json=as_json)
    else:
        argv = ["events", "--native", *(["--json"] if as_json else [])]
        argv += [] if timeout_s is None else ["--timeout", str(timeout_s)]
        in_lab(lab_name, argv, on_stdout=_pass_on)


def _pass_on(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _events_here(timeout_s: float | None, *, as_json: bool) -> None:
    with module_here() as lunatik:
        if lunatik is None:
            raise BridgeError("the kernel module lunatik is not loaded, so there is no runtime")
        end = time.monotonic() + (timeout_s or math.inf)
        with lunatik.events() as heard:
            while (left := end - time.monotonic()) > 0:
                event = heard.next(min(left, _LOOK_S))
                if event:
                    click.echo(json.dumps(_as_object(event)) if as_json else str(event))


def _as_object(event: RuntimeEvent) -> dict[str, Any]:
    return {"event": type(event).__name__, **asdict(event)}


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(min=0))
@click.option("--all", "every", is_flag=True, help="Stop every runtime.")
@options.native
@options.lab
def stop(ids: tuple[int, ...], *, every: bool, native: bool, lab_name: str) -> None:
    r"""Stop runtimes in the lab that is up, by their numbers.

    A stopped runtime's hooks are gone, its callbacks have ended, and every byte it
    held is free. A number that no runtime has is an error; the others are stopped.

    \b
    Examples:
      lunabridge stop 3
      lunabridge stop --all
    """
    if bool(ids) == every:
        raise UsageError("give the numbers of runtimes, or --all", cure="see: lunabridge list")
    if native:
        _stop_here(ids, every=every)
    else:
        numbers = [str(one) for one in ids]
        in_lab(lab_name, ["stop", "--native", *(["--all"] if every else numbers)])


def _stop_here(ids: tuple[int, ...], *, every: bool) -> None:
    from bridge.lunatik import Lunatik  # noqa: PLC0415 (slow to import)

    alive = [row["id"] for row in _runtimes_here()]
    unknown = [] if every else [one for one in ids if one not in alive]
    chosen = alive if every else [one for one in ids if one in alive]
    if chosen:
        with Lunatik.connect() as lunatik:
            for one in chosen:
                lunatik.stop(one, missing_ok=every)
    if unknown:
        names = ", ".join(str(one) for one in dict.fromkeys(unknown))
        raise BridgeError(
            f"no runtime {names}", cure="lunabridge list shows the runtimes there are"
        )
