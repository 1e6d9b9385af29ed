"""Seconds from starting the machine to the end of the guest's first command.

    .venv/bin/python tests/measure/boot.py

Five labs each, freshly booted and restored from the saved guest.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from bridge.lab import Lab, Options
from bridge.lab.progress import silent

LABS = 5


def main() -> int:
    """Measure, print a JSON object of seconds, return 0."""
    Lab.boot(progress=silent).close()  # builds and saves what is missing
    figures = {"booted": _seconds(Options(fresh=True)), "restored": _seconds(Options())}
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0


def _seconds(options: Options) -> dict[str, float]:
    agent, command = [], []
    for _ in range(LABS):
        with Lab.boot(options, progress=silent) as lab:
            start = time.monotonic()
            lab.run(["true"])
            agent.append(lab.boot_s)
            command.append(lab.boot_s + time.monotonic() - start)
    return {
        "agent answers, median": round(statistics.median(agent), 2),
        "first command ended, median": round(statistics.median(command), 2),
        "first command ended, worst": round(max(command), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
