"""Showing what happens, event by event, on a terminal of any width or as plain text.

Colours are for terminals only; elsewhere, with NO_COLOR and with --quiet the same
lines come without them and without any control codes.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from bridge.events import (
    Counters,
    End,
    Event,
    Life,
    Network,
    Packets,
    Phase,
    Policy,
    PropertyFacts,
    Proved,
    Stage,
    Switch,
    to_json,
)
from bridge.outcome import HOLDS, VIOLATED, Outcome, told

_GOOD, _BAD, _DOUBT, _QUIET, _HEAD = "green", "bold red", "yellow", "dim", "bold"
_NOT_A_TERMINAL = 100
_TITLE_WIDTH = 36
_CLAIM_COLUMN = 18
_SINGLE: dict[type[Any], str] = {
    Network: "network",
    Policy: "policy",
    Counters: "counters",
    Proved: "proof",
}
_SEVERAL: dict[type[Any], str] = {
    Packets: "packets",
    Switch: "switches",
    Life: "life",
    Stage: "stages",
}


def console(file: IO[str] | None = None, *, quiet: bool = False) -> Console:
    """Return a console for ``file``, plain unless it is a terminal that may show colours."""
    stream = file or sys.stdout
    plain = quiet or not stream.isatty() or bool(os.environ.get("NO_COLOR"))
    return Console(
        file=stream,
        force_terminal=not plain,
        color_system=None if plain else "auto",
        no_color=plain,
        width=None if stream.isatty() else _NOT_A_TERMINAL,
        highlight=False,
        markup=False,
        emoji=False,
    )


class Screen:
    """Shows events in the order they come, life and proof as a whole at the end."""

    def __init__(self, out: Console, *, show_source: bool = True) -> None:
        self._out = out
        self._show_source = show_source
        self._life: list[Life] = []
        self._needs_columns = False
        utf8 = out.encoding.lower().replace("-", "") == "utf8"
        self._tick, self._cross = ("✓", "✗") if utf8 else ("ok", "NO")

    def title(self, text: str, where: str) -> None:
        """Show what this is and where it happens."""
        self._line((text, _HEAD))
        self._line((f"in {where}", _QUIET))

    def show(self, event: Event) -> None:
        """Show one event; life and stages wait for life() and timings()."""
        match event:
            case Network():
                self._network(event)
            case Policy():
                self._policy(event)
            case Phase():
                self._phase(event)
            case Packets():
                self._packets(event)
            case Switch():
                self._switch(event)
            case Life():
                self._life.append(event)
            case Counters():
                self._counters(event)
            case Proved():
                self._timeline()
                self._proof(event)
            case _:
                pass

    def outcome(self, outcome: Outcome, passed: str, seconds: float) -> None:
        """Show the outcome, in the last line."""
        self._line()
        for reason in outcome.reasons:
            self._line((f"  {self._cross} ", _BAD), (reason, ""))
        if outcome.passed:
            self._line(("PASSED", f"bold {_GOOD}"), (f": {passed} ({seconds:.1f} s)", ""))
        else:
            count = len(outcome.reasons)
            text = f": {_some(count, 'thing')} not as expected"
            self._line(("FAILED", _BAD), (f"{text} ({seconds:.1f} s)", ""))

    def timings(self, stages: Iterable[Stage]) -> None:
        """Show where the time went."""
        self._heading("the time", "seconds since the start; stages overlap")
        for one in stages:
            took = one.end_s - one.start_s
            self._line(
                (f"  {one.start_s:6.1f} -{one.end_s:6.1f} {took:6.1f} s  {one.name}", "")
            )

    # ---- parts --------------------------------------------------------------

    def _line(self, *parts: tuple[str, str]) -> None:
        self._out.print(Text.assemble(*parts), soft_wrap=True)

    def _heading(self, title: str, more: str = "") -> None:
        self._line()
        self._line((title.upper(), _HEAD), (f"  {more}" if more else "", _QUIET))

    def _network(self, network: Network) -> None:
        self._heading("the network")
        rows = network.drawing.splitlines()
        if max(map(len, rows), default=0) > self._out.width:
            rows = narrow_drawing(network)
        for row in rows:
            self._line((row, ""))

    def _policy(self, policy: Policy) -> None:
        self._heading("the policy", f"{policy.name}.lua, {policy.how}")
        if self._show_source:
            for row in policy.source.rstrip().splitlines():
                comment = row.lstrip().startswith("--")
                self._line(("  | ", _QUIET), (row, _QUIET if comment else ""))

    def _phase(self, phase: Phase) -> None:
        self._line()
        self._line((phase.title, _HEAD))
        self._needs_columns = True

    def _columns(self) -> None:
        columns = f"{'packets':<{_TITLE_WIDTH}} IP     sent  expected  seen"
        self._line((f"    {columns}", _QUIET))
        self._needs_columns = False

    def _packets(self, one: Packets) -> None:
        if self._needs_columns:
            self._columns()
        version = str(one.version) if one.version else "4, 6"
        seen = told(one)
        row = (
            f"{one.title:<{_TITLE_WIDTH}} {version:<5} {one.sent:>5}  {one.expected or '-':<9}"
        )
        style = "" if one.as_expected else _BAD
        mark = ("    ", "") if one.expected is None else self._mark(one.as_expected)
        self._line(mark, (f"{row} ", ""), (seen, style))

    def _mark(self, good: bool) -> tuple[str, str]:
        return (f"{self._tick:>3} ", _GOOD) if good else (f"{self._cross:>3} ", _BAD)

    def _switch(self, one: Switch) -> None:
        if one.is_clean:
            text = (
                f"{one.call}: question {one.last} {one.before_ns / 1e6:.1f} ms before,"
                f" {one.first} {one.after_ns / 1e6:.1f} ms after"
            )
        else:
            text = (
                f"{one.call}: not clean: last {one.last}, first {one.first},"
                f" {one.during} during, {one.untraced} untraced, {one.misjudged} misjudged"
            )
        self._line(self._mark(one.is_clean), (text, "" if one.is_clean else _BAD))

    def _counters(self, one: Counters) -> None:
        text = (
            f"runtime {one.runtime} {one.name}: {one.state}, {_some(one.hooks, 'hook')},"
            f" {_some(one.calls, 'callback')}, {_some(one.errors, 'error')},"
            f" {_some(one.memory_bytes, 'byte')}"
        )
        self._line(("    " + text, _BAD if one.errors else _QUIET))
        if one.last_error:
            self._line((f"    last error: {one.last_error}", _BAD))

    def _timeline(self) -> None:
        if not self._life:
            return
        self._heading("the runtime's life", "seconds since its creation")
        for one in self._life:
            # What follows from the step itself is not worth a word.
            detail = "" if one.detail in {"yielded", "requested"} else one.detail
            row = f"  {one.time_s:10.6f}  {one.what:<9} {detail}".rstrip()
            self._line((row, _BAD if one.what == "error" else ""))

    def _proof(self, proof: Proved) -> None:
        self._heading("the proof", "from the kernel's own tracepoints and functions")
        for one in proof.properties:
            self._property(one)
        for name, value, good in proof_rows(proof):
            self._line((f"      {name:<34} ", _QUIET), (value, "" if good else _BAD))
        for flags, count in sorted(proof.allocations.items()):
            self._line((f"        {count:,} {flags}", _QUIET))

    def _property(self, one: PropertyFacts) -> None:
        if one.outcome == HOLDS:
            room = max(self._out.width - _CLAIM_COLUMN, _CLAIM_COLUMN)
            first, *more = textwrap.wrap(one.claim, room)
            self._line(self._mark(True), (f"{one.name:<13} {first}", ""))
            for row in more:
                self._line((f"{'':{_CLAIM_COLUMN}}{row}", ""))
            return
        style = _BAD if one.outcome == VIOLATED else _DOUBT
        self._line(
            (f"{self._cross if one.outcome == VIOLATED else '?':>3} ", style),
            (f"{one.name:<13} {one.claim}: {one.outcome}", style),
        )
        for reason in one.reasons:
            self._line((f"      {reason}", style))


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def proof_rows(proof: Proved) -> list[tuple[str, str, bool]]:
    """Return name, value and whether it is good of each figure of a proof."""
    counted = proof.forwarded == proof.callbacks
    if proof.forwarded is None:
        packets, counted = "not comparable with these hooks", True
    else:
        packets = f"{proof.forwarded:,}{', one callback each' if counted else ''}"
    rows = [
        ("callbacks traced", f"{proof.callbacks:,}", proof.callbacks > 0),
        ("packets that reached the hook", packets, counted),
        ("longest callback, tracing included", f"{proof.longest_ns / 1e6:.2f} ms", True),
        ("atomic violations", f"{proof.atomic_violations}", not proof.atomic_violations),
        (
            "sleeping calls",
            f"{proof.sleeping_calls} ({proof.sleepers} functions watched)",
            not proof.sleeping_calls and proof.sleepers > 0,
        ),
        ("lost trace events", f"{proof.lost}", not proof.lost),
    ]
    rows.append(("allocations in callbacks", f"{sum(proof.allocations.values()):,}", True))
    return rows


def narrow_drawing(network: Network) -> list[str]:
    """Draw the hosts below each other, for narrow screens."""
    rows: list[str] = []
    for host in network.hosts:
        if rows:
            rows.append("  |")
        for number, (name, ipv4, ipv6) in enumerate(host.interfaces):
            label = host.name if number == 0 else ""
            rows.append(f"{label:<8} {name:<6} {ipv4:<16} {ipv6}".rstrip())
    return rows


def as_json(
    events: Sequence[Event], outcome: Outcome, *, where: str, seconds: float
) -> dict[str, Any]:
    """Return a whole run as one object that the json module can write."""
    whole: dict[str, Any] = {
        "passed": outcome.passed,
        "reasons": list(outcome.reasons),
        "where": where,
        "seconds": round(seconds, 3),
    }
    for kind, name in _SINGLE.items():
        whole[name] = next((_bare(one) for one in events if isinstance(one, kind)), None)
    for kind, name in _SEVERAL.items():
        whole[name] = [_bare(one) for one in events if isinstance(one, kind)]
    return whole


def _bare(event: Event) -> dict[str, Any]:
    values = to_json(event)
    del values["event"]
    if isinstance(event, Packets):
        values["as_expected"] = event.as_expected
    if isinstance(event, Switch):
        values["clean"] = event.is_clean
    return values


def whole_timing(host: Sequence[Stage], events: Sequence[Event], total_s: float) -> list[Stage]:
    """Return all stages on one clock, which began with the command.

    ``host`` are those before the guest half was started, ``total_s`` when it had ended.
    """
    ready_s = max((one.end_s for one in host), default=0.0)
    end = next((one.seconds for one in events if isinstance(one, End)), 0.0)
    begin_s = max(ready_s, total_s - end)
    started = [Stage("start the guest half", ready_s, begin_s)] if end else []
    inside = [
        Stage(one.name, one.start_s + begin_s, one.end_s + begin_s)
        for one in events
        if isinstance(one, Stage)
    ]
    return [*host, *started, *sorted(inside, key=lambda one: (one.start_s, one.end_s))]
