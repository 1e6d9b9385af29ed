"""The kernel module, kept between tests that leave no mark on it.

To load and to unload it takes longer than most tests, above all with sanitizers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.lunatik import Lunatik

_LOADED = Path("/sys/module/lunatik")


class ModuleKeeper:
    """The module with its defaults, loaded anew only where a test has left its mark on it."""

    def __init__(self) -> None:
        self._fresh: object = None

    def connect(self) -> Lunatik:
        """Return a connection to a module that is as if it had just been loaded.

        One that somebody else has loaded stays as it is. Raises what Lunatik.load() does.
        """
        from bridge.lunatik import Lunatik  # noqa: PLC0415 - slow to import

        if self._fresh is None and not _LOADED.exists():
            with Lunatik.load(_file()) as loaded:
                loaded.keep()
            self._fresh = self._state()
        return Lunatik.connect()

    def look(self) -> None:
        """Unload it, unless all it shows is as it was after loading."""
        if self._state() != self._fresh:
            self.unload()

    def unload(self) -> None:
        """Unload it if it was loaded here."""
        if self._fresh is None:
            return
        self._fresh = None
        if _LOADED.exists():
            from bridge.lunatik import Lunatik  # noqa: PLC0415 - slow to import

            with Lunatik.connect() as lunatik:
                lunatik.unload()

    def _state(self) -> object:
        """Return every parameter, what it has allocated, and who holds it."""
        from bridge.lunatik import Lunatik  # noqa: PLC0415 - slow to import

        if not _LOADED.exists():
            return None
        parameters = {path.name: path.read_text() for path in _LOADED.glob("parameters/*")}
        with Lunatik.connect() as lunatik:
            info = lunatik.info()
        return parameters, info, (_LOADED / "refcnt").read_text()


def _file() -> Path | None:
    """Return the module's file where it is not in its usual place, as with --native."""
    from bridge.lunatik import GUEST_MODULE  # noqa: PLC0415 - slow to import

    if GUEST_MODULE.exists():
        return None
    from bridge import module  # noqa: PLC0415 - not in the guest

    return module.build(module.Kernel.running()) / "lunatik.ko"
