"""The demonstration's guest half; see guesthalf."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge import guesthalf
from bridge.demo.scenario import perform
from bridge.events import Emitter


def _work(emit: Emitter, job: Mapping[str, Any]) -> None:
    module = job.get("module")
    perform(emit, module=Path(module) if module else None)


if __name__ == "__main__":
    sys.exit(guesthalf.main(_work))
