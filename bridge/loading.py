"""The guest half of `lunabridge check`: load each policy, and stop it again.

The job lists policies, each with its name and source. They are loaded as `lunabridge
run` does: as non-sleepable runtimes at the router of a client - router - server topology.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge import guesthalf
from bridge.errors import LuaError, ModuleError
from bridge.events import End, Event, Loaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.lunatik import Lunatik


def perform(
    emit: Callable[[Event], None],
    policies: Sequence[tuple[str, str]],
    *,
    module: Path | None = None,
) -> None:
    """Load policies by name and source, one after another; emit what came of each.

    Raises ModuleError where the module cannot be loaded, TopologyError.
    """
    from bridge.lunatik import Lunatik  # noqa: PLC0415 (slow to import)
    from netns import Topology  # noqa: PLC0415

    with Lunatik.load(module) as lunatik, Topology.router() as topology:
        netns = topology["router"].netns
        for number, (name, source) in enumerate(policies):
            emit(_loaded(lunatik, netns, number, name, source))
    emit(End(0.0))


def _loaded(lunatik: Lunatik, netns: str, number: int, name: str, source: str) -> Loaded:
    try:
        with lunatik.runtime(name, source=source, sleep=False, netns=netns) as runtime:
            info = runtime.info()
            return Loaded(number, info.hooks, info.memory_bytes, None, None)
    except (LuaError, ModuleError) as error:
        return Loaded(number, 0, 0, error.message, getattr(error, "traceback", None))


def _work(emit: Callable[[Event], None], job: Mapping[str, Any]) -> None:
    module = job.get("module")
    policies = [(one["name"], one["source"]) for one in job["policies"]]
    perform(emit, policies, module=Path(module) if module else None)


if __name__ == "__main__":
    sys.exit(guesthalf.main(_work))
