"""The lab: throw-away virtual machines that run commands for the host.

>>> with Lab.attach_or_boot() as lab:
...     print(lab.run(["uname", "-r"], timeout_s=10).stdout)
"""

from __future__ import annotations

from bridge.lab.channel import Completed, Session
from bridge.lab.lab import Lab
from bridge.lab.machine import Options
from bridge.lab.running import Facts
from bridge.lab.status import Check, clean_leftovers, diagnose

__all__ = [
    "Check",
    "Completed",
    "Facts",
    "Lab",
    "Options",
    "Session",
    "clean_leftovers",
    "diagnose",
]
