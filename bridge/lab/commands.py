"""`lunabridge lab`: the lab's verbs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from bridge.lab.machine import Options

if TYPE_CHECKING:
    from bridge.lab.status import LabStatus

_NAME = click.option("--name", default="default", show_default=True, help="Which lab.")
_CPUS = click.option("--cpus", type=click.IntRange(1, 64), help="Number of CPUs.")
_MEMORY = click.option("--memory", "memory_mib", type=click.IntRange(256), metavar="MIB",
                       help="Memory in MiB.")  # fmt: skip
_ICOUNT = click.option("--icount", is_flag=True,
                       help="One CPU whose time counts instructions.")  # fmt: skip


def make_options(cpus: int | None, memory_mib: int | None, icount: bool) -> Options | None:
    """Return the options that were given, None where all are defaults."""
    options = Options()
    if cpus:
        options = replace(options, cpus=cpus)
    if memory_mib:
        options = replace(options, memory_mib=memory_mib)
    options = replace(options, icount=icount)
    return None if options == Options() else options


@click.group()
def lab() -> None:
    """Run throw-away virtual machines and commands in them."""


@lab.command()
@_NAME
@_CPUS
@_MEMORY
@_ICOUNT
def up(name: str, cpus: int | None, memory_mib: int | None, icount: bool) -> None:
    """Boot a lab that stays up, for `run` and `shell` to reuse."""
    from bridge.lab import supervisor

    facts = supervisor.up(name, make_options(cpus, memory_mib, icount) or Options())
    click.echo(
        f"lab {name!r} is up: kernel {facts.release}, {facts.acceleration},"
        f" booted in {facts.boot_s:.1f} s",
        err=True,
    )


@lab.command()
@_NAME
def down(name: str) -> None:
    """End a lab that is up."""
    from bridge.lab import supervisor

    supervisor.down(name)


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def status(as_json: bool) -> None:
    """List the labs that are up, and the image they boot from."""
    from bridge.lab.status import survey

    found = survey()
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    for line in found.removed:
        click.echo(f"removed a stale {line}", err=True)
    click.echo(f"image  {found.image or 'not built yet (make image)'}")
    if not found.labs:
        click.echo("no lab is up")
    for row in found.labs:
        click.echo(_describe(row))


def _describe(row: LabStatus) -> str:
    if row.facts is None:
        return f"lab {row.name}: booting"
    state = "up" if row.answers else "does not answer"
    facts = row.facts
    return (
        f"lab {row.name}: {state}, kernel {facts.release}, {facts.acceleration},"
        f" booted in {facts.boot_s:.1f} s"
    )


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_NAME
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True),
              metavar="SECONDS", help="End the command after this long, with status 124.")  # fmt: skip
@_CPUS
@_MEMORY
@_ICOUNT
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    name: str,
    timeout_s: float | None,
    cpus: int | None,
    memory_mib: int | None,
    icount: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in the lab that is up, or in one of its own.

    Standard streams and the exit status pass through; 124 is a time-out, 255 a
    guest that crashed. Options of the machine boot a lab of its own.
    """
    from bridge.lab.lab import Lab
    from bridge.lab.passthrough import pass_through

    with Lab.attach_or_boot(name, make_options(cpus, memory_mib, icount)) as machine:
        return pass_through(machine, command, timeout_s)


@lab.command()
@_NAME
@_CPUS
@_MEMORY
@_ICOUNT
def shell(name: str, cpus: int | None, memory_mib: int | None, icount: bool) -> int:
    """Open a shell in the lab that is up, or in one of its own."""
    from bridge.lab.lab import Lab
    from bridge.lab.passthrough import interactive, pass_through

    with Lab.attach_or_boot(name, make_options(cpus, memory_mib, icount)) as machine:
        if os.isatty(0) and os.isatty(1):
            return interactive(machine, ["bash", "-i"])
        return pass_through(machine, ["bash"], None)
