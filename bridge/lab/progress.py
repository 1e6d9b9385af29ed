"""Progress lines: what is being done and since when, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Print one progress line."""
    sys.stderr.write(f"lunabridge: {line}\n")
    sys.stderr.flush()


def silent(line: str) -> None:
    """Print nothing."""


@contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """Announce a step, and how long it took in seconds once it succeeded."""
    progress(f"{what} ...")
    start = time.monotonic()
    yield
    progress(f"{what}: done in {time.monotonic() - start:.1f} s")
