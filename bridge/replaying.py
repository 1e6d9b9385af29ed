"""The guest half of `lunabridge replay`: send packets of a capture through a policy.

The job has the policy's name and source, the values to resume it with, and the packets
with their numbers, as hexadecimal digits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge import guesthalf
from bridge.events import End, Event, Judged
from bridge.judging import SKIPPED, Judge, as_sent
from bridge.words import values

if TYPE_CHECKING:
    from bridge.netlink import Value


def perform(
    emit: Callable[[Event], None],
    policy: tuple[str, str],
    resumes: Sequence[Sequence[Value]],
    packets: Iterable[tuple[int, bytes]],
    *,
    module: Path | None = None,
) -> None:
    """Send packets, by their numbers, one after another; emit what became of each.

    Raises what Judge.open() raises.
    """
    with Judge.open(policy, resumes, module=module) as judge:
        for number, raw in packets:
            emit(_judged(judge, number, raw))
    emit(End(0.0))


def _judged(judge: Judge, number: int, raw: bytes) -> Judged:
    try:
        packet = as_sent(raw)
    except ValueError as error:
        return Judged(number, SKIPPED, False, "", None, (), (), "", str(error))
    return judge.judge(number, packet)


def _work(emit: Callable[[Event], None], job: Mapping[str, Any]) -> None:
    module = job.get("module")
    perform(
        emit,
        (job["name"], job["source"]),
        [values(words) for words in job["resumes"]],
        [(number, bytes.fromhex(digits)) for number, digits in job["packets"]],
        module=Path(module) if module else None,
    )


if __name__ == "__main__":
    sys.exit(guesthalf.main(_work))
