"""`lunabridge lab`: the lab's verbs."""

from __future__ import annotations

import click

from bridge.lab.machine import Options


@click.group()
def lab() -> None:
    """Run throw-away virtual machines and commands in them."""


@lab.command(context_settings={"ignore_unknown_options": True})
@click.option("--name", default="default", show_default=True, help="Which running lab to use.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS",
              help="End the command after this long, with status 124.")  # fmt: skip
@click.option("--icount", is_flag=True, help="Boot a lab whose time counts instructions.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(name: str, timeout_s: float | None, icount: bool, command: tuple[str, ...]) -> int:
    """Run COMMAND in the lab that is up, or in one of its own.

    Standard streams and the exit status pass through.
    """
    from bridge.lab.lab import Lab
    from bridge.lab.passthrough import pass_through

    options = Options(icount=True) if icount else None
    with Lab.attach_or_boot(name, options) as machine:
        return pass_through(machine, command, timeout_s)
