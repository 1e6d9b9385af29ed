"""What a kernel built with sanitizers knows of its faults besides its log.

On a kernel without them everything here finds nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
LOCKDEP = Path("/proc/lockdep_stats")


def present() -> bool:
    """Return whether this kernel was built with sanitizers."""
    return LOCKDEP.exists()


def forget_leaks() -> None:
    """Let leaks() report only what leaks from now on."""
    if KMEMLEAK.exists():
        KMEMLEAK.write_text("scan")
        KMEMLEAK.write_text("clear")  # only what a scan has found can be cleared


def leaks() -> list[str]:
    """Return kmemleak's reports, one for each object that nothing points to.

    An object whose only pointer is on the move while memory is scanned looks lost, so
    it counts if a second scan does not find it either (dev-tools/kmemleak.rst).
    """
    if not KMEMLEAK.exists():
        return []
    KMEMLEAK.write_text("scan")
    if not KMEMLEAK.read_text():
        return []
    KMEMLEAK.write_text("scan")
    reports = KMEMLEAK.read_text()
    KMEMLEAK.write_text("clear")
    return [
        f"unreferenced object{report}" for report in reports.split("unreferenced object")[1:]
    ]


def lockdep_is_off() -> bool:
    """Return whether lockdep has turned itself off, after which locks go unwatched."""
    if not present():
        return False
    return re.search(r"\bdebug_locks: +0\b", LOCKDEP.read_text()) is not None
