"""The lab: throw-away virtual machines that run commands for the host.

    from bridge.lab import Lab

    with Lab.attach_or_boot() as lab:
        print(lab.run(["uname", "-r"], timeout_s=10).stdout)
"""

from __future__ import annotations

from bridge.lab.channel import Completed, Session
from bridge.lab.lab import Lab
from bridge.lab.machine import Options

__all__ = ["Completed", "Lab", "Options", "Session"]
