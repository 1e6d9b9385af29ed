"""`lunabridge repl`: type Lua, and have it run in the kernel."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

import click

from bridge import options
from bridge.lab.progress import silent, to_stderr
from bridge.place import open_place

_HISTORY_LINES = 1000
_CHUNK_MAX = 56 * 1024


class Evaluates(Protocol):
    """What chunks are given to: the conversation with a guest half."""

    def ask(self, request: dict[str, str]) -> dict[str, str]:
        """Return what came of a chunk; see bridge.evaluating."""


class Lines(Protocol):
    """Where lines come from."""

    is_terminal: bool

    def next(self, prompt: str) -> str:
        """Return a line without its end; raises EOFError and KeyboardInterrupt."""

    def history(self) -> AbstractContextManager[None]:
        """Call back and keep lines during the block."""


@click.command()
@options.native
@options.lab
@options.quiet
def repl(*, native: bool, lab_name: str, quiet: bool) -> int:
    r"""Type Lua, and have it run in the kernel.

    A sleepable runtime evaluates each line, and keeps globals from line to line. What an
    expression gives is printed, what print writes too; an error is told with the lines
    that led to it. A line that is not complete is continued on the next. Ctrl-C gives up
    the line, or interrupts what a chunk waits for; Ctrl-D ends, and stops the runtime.
    On a terminal, lines can be edited and called back from a history.

    From a pipe it reads lines without asking for them, and exits with 1 where one failed.

    \b
    Examples:
      lunabridge repl
      echo 'require("linux").time()' | lunabridge repl
    """
    lines: Lines = Terminal() if sys.stdin.isatty() else Pipe()
    progress = silent if quiet else to_stderr
    with (
        open_place(native=native, lab_name=lab_name, progress=progress) as place,
        place.converse("bridge.evaluating") as conversation,
        lines.history(),
    ):
        about = conversation.ask({})
        if lines.is_terminal and not quiet:
            click.echo(f"{about['lua']} in Linux {about['linux']}; Ctrl-D ends", err=True)
        failed = converse(conversation, lines)
    return int(failed and not lines.is_terminal)


def converse(evaluates: Evaluates, lines: Lines) -> bool:
    """Have lines evaluated until there are no more; return whether one failed."""
    failed = False
    pending: list[str] = []
    why = ""
    while True:
        try:
            line = lines.next(">> " if pending else "> ")
        except EOFError:
            if pending:
                click.echo(why, err=True)
            return failed or bool(pending)
        except KeyboardInterrupt:
            if not lines.is_terminal:
                raise
            click.echo(err=True)
            pending.clear()
            continue
        if not pending and not line.strip():
            continue
        pending.append(line)
        answer = _evaluated(evaluates, "\n".join(pending))
        if answer["status"] == "more":
            why = answer["message"]
            continue
        pending.clear()
        failed |= _show(answer)


def _evaluated(evaluates: Evaluates, chunk: str) -> dict[str, str]:
    size = len(os.fsencode(chunk))
    if size > _CHUNK_MAX:
        message = f"the chunk has {size:,} bytes, at most {_CHUNK_MAX:,} can be sent"
        return {"status": "error", "output": "", "message": message}
    return evaluates.ask({"chunk": chunk})


def _show(answer: dict[str, str]) -> bool:
    """Show what came of a chunk; return whether it failed."""
    if answer["output"]:
        click.echo(answer["output"])
    if answer["status"] == "ok":
        return False
    click.echo(answer["message"], err=True)
    if answer["status"] == "lost":
        click.echo("lunabridge: it took its runtime along; here is a new one", err=True)
    return True


class Terminal:
    """Lines that somebody types."""

    is_terminal = True

    def next(self, prompt: str) -> str:
        """Return a line, which readline lets edit where it is there."""
        if sys.stdout.isatty():
            return input(prompt)
        click.echo(prompt, err=True, nl=False)
        return input()

    @contextmanager
    def history(self) -> Iterator[None]:
        """Have the lines of earlier times called back, and keep those of this time."""
        try:
            import readline  # noqa: PLC0415 (not every Python has it)
        except ImportError:
            yield
            return
        path = _state_home() / "lunatik-bridge" / "repl_history"
        with suppress(OSError):  # the first time there is none
            readline.read_history_file(path)
        readline.set_history_length(_HISTORY_LINES)
        try:
            yield
        finally:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(path)
            except OSError as error:
                click.echo(f"lunabridge: cannot write {path}: {error.strerror}", err=True)


def _state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


class Pipe:
    """Lines of a program or a file."""

    is_terminal = False

    def next(self, prompt: str) -> str:
        """Return a line, of any bytes."""
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return os.fsdecode(line).removesuffix("\n")

    def history(self) -> AbstractContextManager[None]:
        """Keep none."""
        return nullcontext()
