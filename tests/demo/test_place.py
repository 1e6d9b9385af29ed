"""The host half follows a guest half to its end, whatever that is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from bridge import place
from bridge.errors import BridgeError, GuestCrashed, LabTimeout, LuaError, ModuleError
from bridge.events import End, Event, Stage, failure, to_json

PRELUDE = "import json, signal, sys, time\ndef say(one): print(json.dumps(one), flush=True)\n"


class Here:
    where = "here"
    stages: Sequence[Stage] = ()
    interrupted = False

    def work(self, *_: object, **__: object) -> Iterator[Event]:
        raise NotImplementedError


@contextmanager
def half(program: str) -> Iterator[place._NativeHalf]:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", PRELUDE + program]
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            yield place._NativeHalf(process)
        finally:
            process.kill()


def events(program: str, here: Here | None = None, timeout_s: float = 30.0) -> list[Event]:
    with half(program) as running:
        return list(place._events(running, here or Here(), timeout_s))


END = f"say({to_json(End(1.0))})\n"


def test_events_come_through() -> None:
    assert events(END * 3) == [End(1.0)] * 3


@pytest.mark.parametrize(
    "error",
    [
        LuaError("policy:1: oops", traceback="in main chunk"),
        ModuleError("no module", cure="build it"),
        GuestCrashed("it died"),
        BridgeError("plain"),
    ],
)
def test_the_error_of_a_guest_half_is_raised_again(error: BridgeError) -> None:
    with pytest.raises(type(error)) as caught:
        events(END + f"say({to_json(failure(error))})\nsys.exit(1)")
    assert str(caught.value) == str(error)
    assert caught.value.exit_status == error.exit_status


def test_a_crash_of_the_guest_half_shows_its_traceback() -> None:
    with pytest.raises(BridgeError, match="ZeroDivisionError"):
        events("1/0")


def test_nonsense_is_an_error() -> None:
    with pytest.raises(BridgeError, match="nobody understands: hello"):
        events("print('hello', flush=True)")


def test_a_half_line_at_the_end_is_not_taken_for_an_event() -> None:
    assert events(END + 'sys.stdout.write(\'{"event": "e\')') == [End(1.0)]


def test_a_guest_half_that_hangs_is_interrupted() -> None:
    with pytest.raises(LabTimeout):
        events("time.sleep(60)", timeout_s=0.3)


def test_ctrl_c_lets_the_guest_half_finish() -> None:
    here = Here()
    program = f"""
try:
    say({to_json(Stage("begin", 0, 1))})
    time.sleep(60)
except KeyboardInterrupt:
    {END}
    sys.exit(130)
"""
    found = []
    with half(program) as running:
        for event in place._events(running, here, 30.0):
            found.append(event)
            if isinstance(event, Stage):
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert found == [Stage("begin", 0, 1), End(1.0)]
    assert here.interrupted


def test_ctrl_c_kills_where_nothing_is_left_behind() -> None:
    here = Here()
    program = f"say({to_json(Stage('begin', 0, 1))})\ntime.sleep(60)\n{END}"
    found = []
    with half(program) as running:
        for event in place._events(running, here, 30.0, gentle=False):
            found.append(event)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert found == [Stage("begin", 0, 1)]
    assert here.interrupted


def test_a_second_ctrl_c_kills() -> None:
    here = Here()
    program = f"""
signal.signal(signal.SIGINT, lambda *_: say({to_json(Stage("stubborn", 0, 1))}))
say({to_json(Stage("begin", 0, 1))})
while True: time.sleep(60)
"""
    with half(program) as running:
        for _ in place._events(running, here, 30.0):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert here.interrupted
