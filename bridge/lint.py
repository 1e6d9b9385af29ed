"""Having luacheck look at policies, with what the module offers as its only globals.

What luacheck has to know is in policy.luacheckrc, which this program makes:

    python3 -m bridge.lint docs/lua-api.md > bridge/policy.luacheckrc
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import BridgeError, EnvironmentLacking

CONFIG = Path(__file__).with_name("policy.luacheckrc")

_PLACE = re.compile(r"^policy:(\d+):(\d+): \(([EW]\d+)\) (.*)$")
# luacheck's own: nothing found, warnings, errors.
_JUDGED = {0, 1, 2}
_WIDTH = 88


@dataclass(frozen=True, slots=True)
class Remark:
    """What luacheck says of a line; ``code`` begins with E for what is no Lua at all."""

    line: int
    column: int
    code: str
    message: str


def find() -> str:
    """Return the path of luacheck; raises EnvironmentLacking where it is not installed."""
    program = shutil.which("luacheck")
    if program is None:
        raise EnvironmentLacking(
            "luacheck is not installed, so policies cannot be linted",
            cure="it is in Debian's and Ubuntu's package lua-check: apt install lua-check",
        )
    return program


def lint(program: str, source: str) -> list[Remark]:
    """Have the luacheck at ``program`` look at a script."""
    done = subprocess.run(
        [
            program, "--config", str(CONFIG), "--no-cache", "--no-color", "--codes",
            "--formatter", "plain", "--filename", "policy", "-",
        ],
        input=source, capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    found = [_PLACE.match(line) for line in done.stdout.splitlines()]
    if done.returncode not in _JUDGED or None in found:
        raise BridgeError(
            f"luacheck failed: {(done.stderr or done.stdout).strip()}",
            cure=f"try it: {program} --version",
        )
    return [Remark(int(one[1]), int(one[2]), one[3], one[4]) for one in found if one]


# ---- what luacheck has to know ------------------------------------------------


def config(page: str) -> str:
    """Return a configuration of luacheck, from the text of docs/lua-api.md."""
    functions = page.partition("\n## Lua's own functions\n")[2].partition("\n## ")[0]
    there = re.findall(r"^\| `([\w.]+)` \| (?!absent)", functions, re.M)
    there += re.findall(r"^### `(lunatik\.\w+)", page, re.M)
    definable = page.partition("\n## What a script may define\n")[2].partition("\n## ")[0]
    fields: defaultdict[str, list[str]] = defaultdict(list)
    for name in there:
        library, _, field = name.partition(".")
        fields[library] += [field] if field else []
    plain = [name for name, inside in fields.items() if not inside]
    lines = [
        "-- What a policy finds in its globals. Made by bridge/lint.py of docs/lua-api.md.",
        "stds.lunatik = {",
        "  read_globals = {",
        *_wrapped(f'"{name}",' for name in sorted(plain)),
        *(line for name in sorted(fields) for line in _table(name, fields[name])),
        "  },",
        "  globals = {",
        *_wrapped(f'"{name}",' for name in dict.fromkeys(re.findall(r"`(\w+)\(", definable))),
        "  },",
        "}",
        'std = "lunatik"',
    ]
    return "\n".join(lines) + "\n"


def _table(library: str, fields: list[str]) -> list[str]:
    """The fields of a library; the shared environment is a table that scripts fill."""
    if not fields:
        return []
    shared = {"_ENV": "_ENV = { read_only = false, other_fields = true },"}
    inside = (shared.get(name, f"{name} = {{}},") for name in sorted(fields))
    return [f"    {library} = {{ fields = {{", *_wrapped(inside), "    } },"]


def _wrapped(words: Iterable[str]) -> list[str]:
    lines = [" " * 5]
    for word in words:
        if len(lines[-1]) + len(word) >= _WIDTH:
            lines.append(" " * 5)
        lines[-1] += f" {word}"
    return [line for line in lines if line.strip()]


if __name__ == "__main__":
    sys.stdout.write(config(Path(sys.argv[1]).read_text()))
