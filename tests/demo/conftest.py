"""A recorded demonstration that passed, event by event."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.events import Event, from_json

RECORDING = Path(__file__).parent / "passed.jsonl"


@pytest.fixture
def passed() -> list[Event]:
    return [from_json(json.loads(line)) for line in RECORDING.read_text().splitlines()]
