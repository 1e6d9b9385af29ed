"""`--help` of every verb teaches: what it is for, and an example that it would take."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from bridge import cli

# Verbs that do one thing, or have verbs of their own.
WITHOUT_EXAMPLE = {"lab", "doctor", "clean"}


def shown(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run([verb, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_begins_with_what_the_verb_is_for(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = shown(verb, capsys).split("\n\n")[1].strip()
    assert re.match(r"[A-Z].*\.$", sentence, re.S)
    assert "\\b" not in shown(verb, capsys)


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb not in WITHOUT_EXAMPLE])
def test_each_example_stands_on_a_line_of_its_own_and_can_be_parsed(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(verb, capsys).replace("\\\n", " ")
    examples = re.findall(rf"^ +(?:.*\()?lunabridge {verb}\b(.*)$", text, re.M)
    assert examples
    command = cli.cli.get_command(click.Context(cli.cli), verb)  # type: ignore[attr-defined]
    for example in examples:
        words = shlex.split(re.split(r" (?:&&|[|>]) |\)\"", example)[0])
        command.make_context(verb, words).close()
