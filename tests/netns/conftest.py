from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns import Topology, clean_leftovers, namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import signal, sys
from netns import Topology
with Topology.router() as topology:
    topology.client.warm()
    topology.client.popen(["sleep", "1000"])
    print(*(host.netns for host in topology), flush=True)
    signal.pause()
"""


@pytest.fixture
def router() -> Iterator[Topology]:
    with Topology.router() as topology:
        yield topology


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process of its own with a live topology; it has printed its namespaces' names."""
    command = [sys.executable, "-W", "error", "-c", HOLD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        process.kill()
        process.wait()
        clean_leftovers()


@pytest.fixture
def names_now() -> Callable[[], set[str]]:
    """What namespaces of ours exist at the time of the call."""

    def look() -> set[str]:
        if not namespace.DIRECTORY.is_dir():
            return set()
        return {path.name for path in namespace.DIRECTORY.glob("lb-*")}

    return look
