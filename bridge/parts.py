"""Where the parts of the project are that are not Python: the module's sources, Lua.

In a checkout, which an editable installation uses too, they lie beside the package; a
wheel carries them inside it, and leaves out what only the project's own tests need.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
PROJECT = _PACKAGE.parent
"""The checkout, or the directory that the package is installed in."""
_CARRIED = _PACKAGE / "_data"


def installed() -> bool:
    """Return whether this is an installed package, and no checkout."""
    return _CARRIED.is_dir()


def part(name: str) -> Path:
    """Return the directory that is called ``name`` at the top of the project's tree."""
    return (_CARRIED if installed() else PROJECT) / name
