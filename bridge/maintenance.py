"""`lunabridge doctor` and `lunabridge clean`: what every part checks and cleans."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import click

from bridge.errors import EnvironmentLacking

# Functions without arguments; a part is asked in this order.
DIAGNOSES = ["bridge.lab:diagnose"]
CLEANERS = [
    "bridge.lab:clean_leftovers",
    "bridge.module:clean_leftovers",
    "netns:clean_leftovers",
]

_MARKS = {True: "ok", False: "MISSING", None: "-"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per check.")
def doctor(as_json: bool) -> None:
    """Try everything the bridge needs of this machine.

    Exits with 3 where something that is needed is missing.
    """
    missing = []
    for check in (check for diagnose in _functions(DIAGNOSES) for check in diagnose()):
        if as_json:
            click.echo(json.dumps(asdict(check)))
        else:
            click.echo(f"{_MARKS[check.ok]:8}{check.name:20}{check.detail}")
            if check.cure and check.ok is not True:
                click.echo(f"{'':28}{check.cure}")
        if check.ok is False:
            missing.append(check.name)
    if missing:
        raise EnvironmentLacking(f"the bridge cannot work here yet: {', '.join(missing)}")


@click.command()
def clean() -> None:
    """Remove what killed runs left behind."""
    for cleaner in _functions(CLEANERS):
        for removed in cleaner():
            click.echo(f"removed {removed}")


def _functions(names: list[str]) -> Iterator[Callable[[], list[Any]]]:
    for name in names:
        module, _, attribute = name.partition(":")
        function: Callable[[], list[Any]] = getattr(importlib.import_module(module), attribute)
        yield function
