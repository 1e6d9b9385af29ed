"""`lunabridge check`: what can be known of policies before they meet a packet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from bridge import lint, options, policyfile
from bridge.errors import BridgeError, EnvironmentLacking, PolicyError
from bridge.events import End, Loaded
from bridge.lab.progress import Progress, silent, to_stderr
from bridge.place import INTERRUPTED, open_place
from bridge.policyfile import PolicyFile

# Lua shortens the name of a script to this in messages (LUA_IDSIZE in luaconf.h).
_SHOWN_NAME = 59


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a policy; ``code`` is luacheck's, None for what the kernel says."""

    file: str
    line: int | None
    message: str
    code: str | None = None
    traceback: str | None = None

    def __str__(self) -> str:
        """Return what editors and other programs can read: FILE:LINE: message."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}{f' ({self.code})' if self.code else ''}"


@dataclass(slots=True)
class Report:
    """What was found out about a file."""

    file: str
    loaded: bool = False
    linted: bool = False
    hooks: int = 0
    memory_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


@click.command()
@options.policy("policies", metavar="POLICY...", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Without luacheck, exit with 3.")
@options.native
@options.lab
@options.json_output
@options.quiet
@options.timeout
def check(
    policies: tuple[str, ...],
    *,
    strict: bool,
    native: bool,
    lab_name: str,
    as_json: bool,
    quiet: bool,
    timeout_s: float,
) -> int:
    r"""Lint policies, and load them in a kernel, before they meet a packet.

    POLICY is a .lua file, or a name below the Lua root such as dns_block. luacheck looks
    at each, and knows which globals there are in the kernel; then the kernel module in
    the lab compiles each, runs its body, registers its hooks, and stops it again.

    What is wrong is told in lines of the form FILE:LINE: message, and makes it exit
    with 1. Where luacheck is not installed, only the kernel looks.

    \b
    Examples:
      lunabridge check my_policy.lua
      lunabridge check --strict --json policies/*.lua
    """
    linter = _linter(strict=strict)
    reports = [Report(policy) for policy in policies]
    files = [_read(policy, report) for policy, report in zip(policies, reports, strict=True)]
    sound = [
        (file, report) for file, report in zip(files, reports, strict=True) if file is not None
    ]
    for file, report in sound:
        _lint(linter, file, report)
    if sound and not _load(
        sound,
        native=native,
        lab_name=lab_name,
        progress=silent if quiet else to_stderr,
        timeout_s=timeout_s,
    ):
        click.echo("lunabridge: interrupted; everything is taken down", err=True)
        return INTERRUPTED
    _show(reports, as_json=as_json)
    return int(any(report.findings for report in reports))


def _linter(*, strict: bool) -> str | None:
    """Return the path of luacheck; None, and say so, where there is none."""
    try:
        return lint.find()
    except EnvironmentLacking as error:
        if strict:
            raise
        click.echo(f"lunabridge: {error}", err=True)
        return None


def _read(policy: str, report: Report) -> PolicyFile | None:
    try:
        file = policyfile.load(policy)
    except PolicyError as error:
        report.findings.append(Finding(policy, None, str(error).replace("\n", ";")))
        return None
    report.file = _shown(file.path)
    return file


def _shown(path: Path) -> str:
    """Return a path as short as it is from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _lint(linter: str | None, file: PolicyFile, report: Report) -> None:
    if linter:
        report.linted = True
        report.findings += (
            Finding(report.file, one.line, one.message, one.code)
            for one in lint.lint(linter, file.source)
        )


def _load(
    sound: Sequence[tuple[PolicyFile, Report]],
    *,
    native: bool,
    lab_name: str,
    progress: Progress,
    timeout_s: float,
) -> bool:
    """Have the kernel load the policies; return False where Ctrl-C ended it."""
    job = {"policies": [{"name": file.name, "source": file.source} for file, _ in sound]}
    ended = False
    with open_place(native=native, lab_name=lab_name, progress=progress) as place:
        progress(f"loading {', '.join(file.name for file, _ in sound)} ...")
        for event in place.work("bridge.loading", job, timeout_s):
            if isinstance(event, Loaded):
                _note(event, *sound[event.number])
            ended = ended or isinstance(event, End)
    if not ended and not place.interrupted:
        raise BridgeError("the loading of the policies did not reach its end")
    return ended


def _note(event: Loaded, file: PolicyFile, report: Report) -> None:
    report.hooks, report.memory_bytes = event.hooks, event.memory_bytes
    report.loaded = event.message is None
    if event.message is not None:
        # The kernel has compiled it, so what luacheck says of its syntax is said already.
        report.findings = [
            one for one in report.findings if not (one.code or "").startswith("E")
        ]
        report.findings.append(located(event.message, event.traceback, file.name, report.file))
    report.findings.sort(key=lambda one: one.line or 0)


def located(message: str, traceback: str | None, name: str, path: str) -> Finding:
    """Return the finding of an error in the script ``name``, with the line that it is in.

    An error of a library is found at the line that called it.
    """
    place = re.compile(rf"\s*{re.escape(name[:_SHOWN_NAME])}:(\d+): ?")
    own = place.match(message)
    if own:
        return Finding(path, int(own[1]), message[own.end() :], None, traceback)
    callers = (place.match(line) for line in (traceback or "").splitlines())
    line = next((int(one[1]) for one in callers if one), None)
    return Finding(path, line, message, None, traceback)


def _show(reports: Sequence[Report], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_object(report) for report in reports]))
        return
    for report in reports:
        for finding in report.findings:
            click.echo(finding)
            for line in (finding.traceback or "").splitlines():
                click.echo(f"    {line.strip()}")
        if not report.findings:
            hooks = f"{report.hooks} hook{'' if report.hooks == 1 else 's'}"
            click.echo(f"{report.file}: ok, {hooks}, {report.memory_bytes:,} bytes")


def _object(report: Report) -> dict[str, Any]:
    return {**asdict(report), "ok": not report.findings}
