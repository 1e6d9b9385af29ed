"""The wheel, which is what people install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bridge.parts import PROJECT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(argv, cwd=PROJECT, check=True, capture_output=True)
    [built] = directory.glob("*.whl")
    return built
