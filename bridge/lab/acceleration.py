"""Which accelerator the machine gets."""

from __future__ import annotations

from bridge.lab.machine import Boot, Options
from bridge.lab.progress import Progress


def choose(options: Options, boot: Boot, progress: Progress) -> str:
    return "icount" if options.icount else "tcg"
