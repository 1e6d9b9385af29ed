"""Events survive their way from the guest half to the host half."""

from __future__ import annotations

import io
import json
import threading

import pytest

from bridge.errors import LuaError
from bridge.events import Emitter, End, Event, Failure, Packets, failure, from_json, to_json


def test_every_event_of_a_run_survives_json(passed: list[Event]) -> None:
    for event in passed:
        assert from_json(json.loads(json.dumps(to_json(event)))) == event


def test_a_lua_error_keeps_its_traceback() -> None:
    event = failure(LuaError("x:1: oops", traceback="in main chunk"))
    assert event == Failure("LuaError", "x:1: oops", None, "in main chunk", 1)


@pytest.mark.parametrize(
    "junk",
    [{}, {"event": "no"}, {"event": "end"}, {"event": ["end"]}, {"event": "end", "x": 1}],
)
def test_junk_is_no_event(junk: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no event"):
        from_json(junk)


def test_lines_of_several_threads_do_not_mix() -> None:
    out = io.StringIO()
    emit = Emitter(out)

    def chatter() -> None:
        for _ in range(200):
            emit(End(1.0))

    threads = [threading.Thread(target=chatter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {from_json(json.loads(line)) for line in out.getvalue().splitlines()} == {End(1.0)}


def test_a_class_without_packets_is_not_as_expected() -> None:
    assert not Packets("a/4", "a", 4, 0, "accepted", {}).as_expected
    assert not Packets("a/4", "a", 4, 2, "accepted", {"accepted": 1}).as_expected
    assert not Packets("a/4", "a", 4, 2, "accepted", {"accepted": 2, "dropped": 1}).as_expected
    assert Packets("a/4", "a", 4, 2, "accepted", {"accepted": 2, "dropped": 0}).as_expected
