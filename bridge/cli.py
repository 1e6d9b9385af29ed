"""The command line: a registry of verbs, and the one place that reports errors.

Each verb lives in a module that is imported only when the verb is used, because
the same command line runs inside the guest, where every import costs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bridge import __version__
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Verb, module and attribute that hold its click command, one line for --help.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("bridge.demo.command:demo", "Show a policy at work in a kernel, with proof."),
    "new": ("bridge.scaffold:new", "Write a policy to begin with, and its test."),
    "check": ("bridge.check:check", "Lint policies, and load them in a kernel."),
    "run": ("bridge.runtimes:run", "Try a policy on a standard mix of traffic, with proof."),
    "send": ("bridge.send:send", "Send one packet through a policy."),
    "replay": ("bridge.replay:replay", "Tell what a policy does with captured packets."),
    "repl": ("bridge.repl:repl", "Type Lua, and have it run in the kernel."),
    "list": ("bridge.runtimes:list_runtimes", "List the runtimes in the lab."),
    "stats": ("bridge.runtimes:stats", "Show what the hooks in the lab have counted."),
    "events": ("bridge.runtimes:events", "Tell what happens to the runtimes in the lab."),
    "resume": ("bridge.resume:resume", "Give a runtime in the lab new data."),
    "stop": ("bridge.runtimes:stop", "Stop runtimes in the lab."),
    "lab": ("bridge.lab.commands:lab", "Run throw-away virtual machines and commands in them."),
    "completion": ("bridge.completion:completion", "Print what makes a shell complete verbs."),
    "doctor": ("bridge.maintenance:doctor", "Try everything the bridge needs of this machine."),
    "clean": ("bridge.maintenance:clean", "Remove what killed runs left behind."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its command."""
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        # Raw docstrings spell in two characters what keeps click from wrapping examples.
        command.help = (command.help or "").replace("\\b\n", "\b\n")
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return verbs and options that begin so, without importing the verbs."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 (only for shells)

        verbs = [
            CompletionItem(verb, help=text)
            for verb, (_, text) in VERBS.items()
            if verb.startswith(incomplete)
        ]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs for --help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lunabridge")
def cli() -> None:
    """Write, test and show packet policies in Lua, running in a real kernel."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (see bridge/errors.py)."""
    try:
        status = cli.main(argv, prog_name="lunabridge", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BridgeError as error:
        report(error)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status if isinstance(status, int) else 0


def report(error: BridgeError) -> None:
    """Say on standard error what is wrong, where it shows, and what cures it."""
    console = getattr(error, "console", "")
    if console:
        click.echo("--- the guest's console, its last lines", err=True)
        click.echo(console, err=True)
        click.echo("---", err=True)
    click.echo(f"lunabridge: {error}", err=True)


if __name__ == "__main__":
    main()
