"""The guest half of `lunabridge send`: one packet through a policy.

The job has the policy's name and source, the values to resume it with, and the packet
as bridge.expression reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bridge import guesthalf
from bridge.events import End, Event
from bridge.expression import parse
from bridge.judging import Judge
from bridge.words import values


def _work(emit: Callable[[Event], None], job: Mapping[str, Any]) -> None:
    module = job.get("module")
    packet = parse(job["packet"])
    resumes = [values(words) for words in job["resumes"]]
    with Judge.open(
        (job["name"], job["source"]),
        resumes,
        module=Path(module) if module else None,
    ) as judge:
        emit(judge.judge(1, packet))
    emit(End(0.0))


if __name__ == "__main__":
    sys.exit(guesthalf.main(_work))
