"""Options and arguments that several verbs of the command line share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from bridge import policyfile
from bridge.place import DEFAULT_LAB

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

TIMEOUT_S = 300.0

_Verb = TypeVar("_Verb", bound="Callable[..., Any]")


def complete_policy(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return what a shell may complete to a policy: files, and names below the Lua root."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 (only for shells)

    names = [name for name in policyfile.known() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *map(CompletionItem, names)]


def policy(name: str, **attributes: Any) -> Callable[[_Verb], _Verb]:
    """Return the decorator of an argument that names a policy, or several."""
    return click.argument(name, shell_complete=complete_policy, **attributes)


native = click.option(
    "--native", is_flag=True, help="Use this machine's own kernel (needs root)."
)
lab = click.option(
    "--lab", "lab_name", default=DEFAULT_LAB, show_default=True, help="Which lab that is up."
)
json_output = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no colours.")
resumes = click.option(
    "--resume",
    "resumes",
    multiple=True,
    metavar="'ARG...'",
    help="Resume the policy with these first, as lunabridge resume does; may be repeated.",
)
policy_option = click.option(
    "--policy", required=True, shell_complete=complete_policy, help="A .lua file, or a name."
)
timeout = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=TIMEOUT_S,
    show_default=True,
    help="End the work after this long, with status 124.",
)
