"""`lunabridge resume`: give a running policy new data, and show what it answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bridge import options
from bridge.errors import BridgeError, UsageError
from bridge.runtimes import in_lab, module_here
from bridge.words import values

if TYPE_CHECKING:
    from bridge.lunatik import RuntimeInfo
    from bridge.netlink import Value


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("runtime")
@click.argument("arguments", metavar="[ARG]...", nargs=-1, type=click.UNPROCESSED)
@options.native
@options.lab
@options.json_output
def resume(
    runtime: str, arguments: tuple[str, ...], *, native: bool, lab_name: str, as_json: bool
) -> None:
    r"""Resume a runtime in the lab that is up, with arguments; print what it answers.

    RUNTIME is its number or its name, as lunabridge list shows them. Its script goes on
    where it last yielded: coroutine.yield returns the arguments there. What it yields or
    returns next is printed, one value a line.

    An ARG is true, false or nil, an integer such as 53, -1 or 0x35, or else a string.
    Quotes inside the shell's make it a string in any case: '"53"'.

    \b
    Examples:
      lunabridge resume dns_block block bad.example
      lunabridge resume 3 54
    """
    values(arguments)  # so that what cannot be passed is refused here
    if native:
        answer = [_as_json(value) for value in _resumed(runtime, values(arguments))]
    else:
        answer = json.loads(
            in_lab(lab_name, ["resume", "--native", "--json", runtime, *arguments])
        )
    if as_json:
        click.echo(json.dumps(answer))
    else:
        sys.stdout.flush()
        for value in answer:
            sys.stdout.buffer.write(_as_text(value) + b"\n")


def _resumed(wanted: str, arguments: tuple[Value, ...]) -> tuple[Value, ...]:
    from bridge.netlink import Command, pack_values, unpack_values  # noqa: PLC0415 (slow)

    with module_here() as lunatik:
        found = _find(wanted, lunatik.runtimes() if lunatik else [])
        assert lunatik is not None
        attributes = [("LUNATIK_A_ID", found), ("LUNATIK_A_VALUES", pack_values(arguments))]
        return unpack_values(lunatik.request(Command.RESUME, attributes)[0])


def _find(wanted: str, runtimes: Sequence[RuntimeInfo]) -> int:
    """Return the number of the runtime that has that number or name."""
    if any(str(one.id) == wanted for one in runtimes):
        return int(wanted)
    named = [one.id for one in runtimes if one.name == wanted]
    if len(named) > 1:
        numbers = ", ".join(map(str, named))
        raise UsageError(
            f"{len(named)} runtimes are called {wanted}: {numbers}",
            cure="give the number of one of them",
        )
    if not named:
        raise BridgeError(
            f"no runtime {wanted}", cure="lunabridge list shows the runtimes there are"
        )
    return named[0]


def _as_json(value: Value) -> Any:
    """Return a value that json can write; a string that is no text as its bytes' digits."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"hex": value.hex()}


def _as_text(value: Any) -> bytes:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    names = {None: "nil", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return names[value].encode()
    return str(value).encode()
