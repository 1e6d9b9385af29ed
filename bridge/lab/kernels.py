"""The kernels a lab can run, by the names that users choose them by.

What is developed for is the first; the suite passes on all of them. The sanitizer kernel
is the first's version, built to find bugs (see sanitizer.py).
"""

from __future__ import annotations

from bridge.errors import UsageError
from bridge.lab.machine import Options

SANITIZER = "sanitizer"
KERNELS = {
    "6.12": Options(suite="trixie"),
    "6.1": Options(suite="bookworm"),
    SANITIZER: Options(sanitizer=True),
}
DEFAULT_KERNEL = "6.12"


def options_for(kernel: str) -> Options:
    """Return the lab that runs ``kernel``; raises UsageError where there is none."""
    try:
        return KERNELS[kernel]
    except KeyError:
        raise UsageError(
            f"there is no lab with the kernel {kernel!r}", cure=f"one of: {', '.join(KERNELS)}"
        ) from None
