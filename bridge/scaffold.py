"""`lunabridge new`: a policy to begin with, and its test."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import click

from bridge.errors import BridgeError, UsageError
from bridge.policyfile import NAME_MAX

_TEMPLATES = Path(__file__).with_name("templates")
_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII | re.IGNORECASE)


@click.command()
@click.argument("name")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to write them; made if it is not there.  [default: here]",
)
def new(name: str, directory: Path) -> None:
    r"""Write a policy to begin with, and a test of it that passes.

    NAME.lua is a small policy with comments: named fields of packets, a rule for
    failures, and data that resume changes while packets flow. test_NAME.py sends real
    packets through it. Prints the paths of both. What is there is not overwritten.

    \b
    Examples:
      lunabridge new my_policy
      lunabridge new my_policy --dir policies && pytest policies
    """
    written = write(_checked(name), directory)
    for path in written:
        click.echo(path)
    click.echo(f"lunabridge: now change them, and try: pytest {written[1]}", err=True)


def _checked(name: str) -> str:
    bare = name.removesuffix(".lua")
    if not _NAME.fullmatch(bare) or len(bare) > NAME_MAX:
        better = re.sub(r"\W", "_", bare, flags=re.ASCII).strip("_")[:NAME_MAX]
        if not _NAME.fullmatch(better):
            better = "my_policy"
        raise UsageError(
            f"{name!r} cannot name a policy: letters, digits and _, at most {NAME_MAX}, can",
            cure=f"try: lunabridge new {better}",
        )
    return bare


def write(name: str, directory: Path) -> tuple[Path, Path]:
    """Write a policy of that name and its test; return their paths.

    Raises UsageError where one of them is there already, BridgeError where they cannot
    be written; neither is there then that was not before.
    """
    files = {
        directory / f"{name}.lua": "policy.lua",
        directory / f"test_{name}.py": "test_policy.py",
    }
    with ExitStack() as undo:
        for path, template in files.items():
            text = (_TEMPLATES / template).read_text().replace("NAME", name)
            try:
                directory.mkdir(parents=True, exist_ok=True)
                with path.open("x") as file:
                    undo.callback(path.unlink)
                    file.write(text)
            except FileExistsError as error:
                raise UsageError(
                    f"{error.filename} is there already",
                    cure="choose another name, or another place with --dir",
                ) from error
            except OSError as error:
                raise BridgeError(f"cannot write {path}: {error.strerror}") from error
        undo.pop_all()
    policy, test = files
    return policy, test
