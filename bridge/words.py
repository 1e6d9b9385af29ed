"""Words of a command line as Lua values."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bridge.errors import UsageError

if TYPE_CHECKING:
    from bridge.netlink import Value

_WORDS: dict[str, bool | None] = {"nil": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|[0-9]+)")


def values(arguments: Iterable[str]) -> tuple[Value, ...]:
    """Return the Lua values that words of a command line stand for; raises UsageError."""
    return tuple(_value(one) for one in arguments)


def _value(text: str) -> Value:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return os.fsencode(text[1:-1])
    if text.startswith("-") and len(text) > 1:
        raise UsageError(
            f"there is no option {text}", cure=f"""as a string, it is: '"{text}"'"""
        )
    return os.fsencode(text)


def _integer(text: str) -> int:
    """Return an integer; one that is written in hexadecimal wraps around, as in Lua."""
    is_hexadecimal = "x" in text.lower()
    number = int(text, 16 if is_hexadecimal else 10)
    if is_hexadecimal and -(2**64) < number < 2**64:
        return (number + 2**63) % 2**64 - 2**63
    if not -(2**63) <= number < 2**63:
        raise UsageError(
            f"{text} does not fit Lua's integers, which have 64 bits",
            cure=f"""as a string, it is: '"{text}"'""",
        )
    return number


def split(text: str) -> list[str]:
    """Return the words of a text, as a shell would; raises UsageError for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r} cannot be read as words: {error}") from error
