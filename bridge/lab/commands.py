"""`lunabridge lab`: the lab's verbs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TypedDict, Unpack

import click

from bridge.lab import image, supervisor
from bridge.lab.kernels import DEFAULT_KERNEL, KERNELS, options_for
from bridge.lab.lab import DEFAULT_NAME, Lab
from bridge.lab.machine import Options
from bridge.lab.passthrough import interactive, pass_through
from bridge.lab.progress import to_stderr
from bridge.lab.running import prepare
from bridge.lab.status import LabStatus, survey


class _MachineArgs(TypedDict):
    """What the command line says of the machine."""

    cpus: int | None
    memory_mib: int | None
    icount: bool
    kernel: str


_Verb = Callable[..., object]
_kernel = click.option(
    "--kernel",
    type=click.Choice(list(KERNELS)),
    default=DEFAULT_KERNEL,
    show_default=True,
    help="Which Linux.",
)
_name = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Which lab.")


def _machine(verb: _Verb) -> _Verb:
    """Give a verb the options of the machine."""
    size = click.IntRange(min=256)
    for option in (
        click.option("--icount", is_flag=True, help="One CPU whose time counts instructions."),
        click.option("--memory", "memory_mib", type=size, metavar="MIB", help="Memory."),
        _kernel,
        click.option("--cpus", type=click.IntRange(1, 64), help="Number of CPUs."),
    ):
        verb = option(verb)
    return verb


def _options(args: _MachineArgs) -> Options | None:
    """Return the options that were given, None where all are defaults."""
    default = Options()
    options = replace(
        options_for(args["kernel"]),
        cpus=args["cpus"] or default.cpus,
        memory_mib=args["memory_mib"] or default.memory_mib,
        icount=args["icount"],
    )
    return None if options == default else options


@click.group()
def lab() -> None:
    """Run throw-away virtual machines and commands in them."""


@lab.command()
@_name
@_machine
def up(name: str, **args: Unpack[_MachineArgs]) -> None:
    """Boot a lab that stays up, for `run` and `shell` to reuse."""
    facts = supervisor.up(name, _options(args) or Options())
    click.echo(
        f"lab {name!r} is up: kernel {facts.release}, {facts.acceleration},"
        f" {'restored' if facts.restored else 'booted'} in {facts.boot_s:.1f} s",
        err=True,
    )


@lab.command()
@_name
def down(name: str) -> None:
    """End a lab that is up."""
    supervisor.down(name)


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def status(as_json: bool) -> None:
    """List the labs that are up, and the image they boot from."""
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
        f" {'restored' if facts.restored else 'booted'} in {facts.boot_s:.1f} s"
    )


@lab.command(context_settings={"allow_interspersed_args": False})
@_name
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="End the command after this long, with status 124.",
)
@_machine
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    name: str,
    timeout_s: float | None,
    command: tuple[str, ...],
    **args: Unpack[_MachineArgs],
) -> int:
    """Run COMMAND in the lab that is up, or in one of its own.

    The kernel module is built first, so that Lunatik.load() finds it. Standard streams
    and the exit status pass through; 124 is a time-out, 255 a guest that crashed.
    Options of the machine boot a lab of its own.
    """
    with Lab.attach_or_boot(name, _options(args)) as machine:
        _furnish(machine)
        return pass_through(machine, command, timeout_s)


@lab.command()
@_name
@_machine
def shell(name: str, **args: Unpack[_MachineArgs]) -> int:
    """Open a shell in the lab that is up, or in one of its own."""
    with Lab.attach_or_boot(name, _options(args)) as machine:
        _furnish(machine)
        if os.isatty(0) and os.isatty(1):
            return interactive(machine, ["bash", "-i"])
        return pass_through(machine, ["bash"], None)


def _furnish(machine: Lab) -> None:
    """Put the kernel module where commands find it, as Lunatik.load() does."""
    from bridge import module  # noqa: PLC0415 (only where it is needed)

    module.install(machine, to_stderr)


@lab.command("image")
@click.option("--remove", is_flag=True, help="Remove every cached image and kernel instead.")
@_kernel
def image_verb(remove: bool, kernel: str) -> None:
    """Build what labs boot from, if it is not there; print the directory it is in."""
    if remove:
        for path in image.remove_all():
            click.echo(f"removed {path}", err=True)
    else:
        click.echo(prepare(options_for(kernel), to_stderr).kernel.parent)
