"""Finding and reading the policy a user names, and refusing what cannot be one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from bridge.errors import PolicyError, UsageError
from bridge.parts import part

LUA_ROOT = part("lua")
SOURCE_MAX_BYTES = 60 * 1024
NAME_MAX = 63

_BYTECODE = b"\x1bLua"
_BIG_CURE = "put parts of it below the Lua root and require them"


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy's name, as its runtime is called, its text, and the path of its file."""

    name: str
    source: str
    path: Path = field(default=Path(), compare=False)


def load(policy: str) -> PolicyFile:
    """Read the policy that ``policy`` names: a file, or a name below the Lua root.

    Raises UsageError where there is no such file or it cannot be read, PolicyError
    where what it holds is no Lua script.
    """
    path = _find(policy)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return PolicyFile(path.stem[:NAME_MAX], checked(data, str(path)), path)


def _find(policy: str) -> Path:
    path = Path(policy)
    below = LUA_ROOT / f"{policy.removesuffix('.lua').replace('.', '/')}.lua"
    is_path = os.sep in policy or policy.endswith(".lua") or path.exists()
    if path.is_dir() and not below.is_file():
        raise UsageError(
            f"{policy} is a directory", cure="name one of its .lua files; one file, one policy"
        )
    if path.is_file() or (path.exists() and not path.is_dir()):
        return path
    if below.is_file():
        return below
    kind = "file" if is_path else "policy"
    raise UsageError(
        f"no {kind} {policy}",
        cure=f"give the path of a .lua file, or one of: {', '.join(known())}",
    )


def known() -> list[str]:
    """Return the names of the policies below the Lua root."""
    return [one.stem for one in sorted(LUA_ROOT.glob("*.lua")) if _is_policy(one)]


def _is_policy(path: Path) -> bool:
    """Whether a file below the Lua root is a policy, and no library for policies."""
    return "netfilter.register" in path.read_text()


def checked(data: bytes, name: str) -> str:
    """Return a script's text; raises PolicyError for what cannot be a script."""
    if data.startswith(_BYTECODE):
        raise PolicyError(
            f"{name} is compiled Lua, and only text is accepted",
            cure="give the source it was compiled from",
        )
    if not data.strip():
        raise PolicyError(f"{name} is empty", cure="see lua/accept.lua for the shortest policy")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise PolicyError(
            f"{name} is no Lua script: byte {error.start} is not UTF-8 text",
            cure="write other bytes in strings as escapes, such as \\xff",
        ) from error
    if "\0" in text:
        raise PolicyError(
            f"{name} is no Lua script: byte {data.index(0)} is zero",
            cure="write it in strings as \\0",
        )
    if len(data) > SOURCE_MAX_BYTES:
        raise PolicyError(
            f"{name} has {len(data):,} bytes, at most {SOURCE_MAX_BYTES:,} can be sent",
            cure=_BIG_CURE,
        )
    return text
