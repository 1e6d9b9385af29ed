"""`lunabridge completion`: what makes a shell complete the command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from bridge.cli import cli

# What click asks the command line by, for a program of this name.
_VARIABLE = "_LUNABRIDGE_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print what makes a shell complete verbs, options and names of policies.

    \b
    Put this into ~/.bashrc:
      eval "$(lunabridge completion bash)"
    into ~/.zshrc, after compinit:
      eval "$(lunabridge completion zsh)"
    or have fish read it at its start:
      lunabridge completion fish > ~/.config/fish/completions/lunabridge.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(cli, {}, "lunabridge", _VARIABLE).source())
