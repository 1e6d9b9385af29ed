"""Image recipes: data files, and the key that names what was built from one."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import UsageError

_RECIPES = Path(__file__).parent / "recipes"
DEFAULT_SUITE = "trixie"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made of; ``key`` changes whenever the content would."""

    suite: str
    kernel: str
    variant: str
    packages: tuple[str, ...]
    sources: tuple[str, ...]
    unpack_exclude: tuple[str, ...]
    squash_exclude: tuple[str, ...]
    boot_modules: tuple[str, ...]
    customize: str
    key: str


def load(suite: str = DEFAULT_SUITE) -> Recipe:
    """Read the recipe of ``suite``; raises UsageError where there is none."""
    text, data = _read(suite)
    customize = (_RECIPES / "customize.sh").read_bytes()
    return Recipe(
        suite=data["suite"],
        kernel=data["kernel"],
        variant=data["variant"],
        packages=tuple(data["packages"]),
        sources=tuple(data["sources"]),
        unpack_exclude=tuple(data["unpack_exclude"]),
        squash_exclude=tuple(data["squash_exclude"]),
        boot_modules=tuple(data["boot_modules"]),
        customize=customize.decode(),
        key=hashlib.sha256(text + b"\0" + customize).hexdigest()[:12],
    )


def _read(suite: str) -> tuple[bytes, dict[str, Any]]:
    """Return the text of a recipe, with that of its base, and what it says."""
    path = _RECIPES / f"{suite}.toml"
    if not path.is_file():
        raise UsageError(
            f"no image recipe for the suite {suite!r}",
            cure=f"one of: {', '.join(available())}",
        )
    text = path.read_bytes()
    data = tomllib.loads(text.decode())
    if base := data.pop("base", None):
        base_text, base_data = _read(base)
        return base_text + text, base_data | data
    return text, data


def available() -> list[str]:
    """Names of the suites there is a recipe for."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))
