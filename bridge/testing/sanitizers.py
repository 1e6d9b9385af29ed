"""What a kernel built with sanitizers knows of its faults besides its log.

On a kernel without them everything here finds nothing.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
LOCKDEP = Path("/proc/lockdep_stats")
_AGE_S = 5.5  # MSECS_MIN_AGE, and a bit


def present() -> bool:
    """Return whether this kernel was built with sanitizers."""
    return LOCKDEP.exists()


def fewer(count: int, *, by: int = 5) -> int:
    """Return how often a test is to repeat what takes several times as long here.

    That is ``count``, on a kernel with sanitizers one in ``by`` of it.
    """
    return count // by if present() else count


def forget_leaks() -> None:
    """Let leaks() report only what leaks from now on."""
    leaks()


def leaks() -> list[str]:
    """Return kmemleak's reports, one for each object that nothing points to.

    Takes its time: younger objects are not reported, nor are those whose content was
    another in the scan before, which is so in the first one (mm/kmemleak.c, 6.12).
    """
    if not KMEMLEAK.exists():
        return []
    time.sleep(_AGE_S)
    KMEMLEAK.write_text("scan")
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
