"""Questions, callbacks and resumes are put together by the kernel's clock alone."""

from __future__ import annotations

import struct

from bridge.capture import Frame
from bridge.demo.stream import (
    Question,
    Resume,
    arrived,
    questions,
    stretches,
    switch,
)
from bridge.tracer import Event, Kind

RESUME = Resume("resume block x", 1000, 1100)


def callback(time_ns: int, verdict: int) -> Event:
    return Event(Kind.CALLBACK, time_ns, 0, 1, 1, b=verdict)


def asked(*times_ns: int, verdict: str = "accepted", fate: str = "accepted") -> list[Question]:
    return [Question(n, at, verdict, fate) for n, at in enumerate(times_ns, start=1)]


def test_callbacks_are_those_of_the_questions_in_order() -> None:
    found = questions(2, [callback(10, 1), callback(20, 0)], {1})
    assert found == [
        Question(1, 10, "accepted", "accepted"),
        Question(2, 20, "dropped", "dropped"),
    ]


def test_a_clean_switch() -> None:
    one = switch(4, asked(800, 990, 1105, 1200), RESUME)
    assert one.is_clean
    assert (one.last, one.first, one.before_ns, one.after_ns) == (2, 3, 10, 5)


def test_a_question_without_callback_is_not_clean() -> None:
    assert not switch(5, asked(800, 990, 1105, 1200), RESUME).is_clean


def test_a_callback_during_the_resume_is_not_clean() -> None:
    one = switch(4, asked(800, 1050, 1105, 1200), RESUME)
    assert one.during == 1
    assert not one.is_clean


def test_a_verdict_that_did_not_happen_is_not_clean() -> None:
    one = switch(2, asked(800, 1200, verdict="dropped", fate="accepted"), RESUME)
    assert one.misjudged == 2
    assert not one.is_clean


def test_no_question_before_or_after_is_not_clean() -> None:
    assert not switch(2, asked(1200, 1300), RESUME).is_clean
    assert not switch(2, asked(800, 900), RESUME).is_clean
    assert not switch(0, [], RESUME).is_clean


def test_stretches_are_divided_by_resumes() -> None:
    second = Resume("resume allow x", 2000, 2100)
    parts = stretches(asked(900, 1050, 1100, 1999, 2000, 2100), [RESUME, second])
    assert [[one.number for one in part] for part in parts] == [[1], [3, 4], [6]]


def frame(version: int, number: int, source: int, host: str = "server") -> Frame:
    udp = struct.pack("!HHHH", source, 53, 0, 0) + number.to_bytes(2, "big") + bytes(10)
    if version == 4:
        header = b"\x45" + bytes(8) + b"\x11" + bytes(10)
    else:
        header = b"\x60" + bytes(5) + b"\x11\x40" + bytes(32)
    return Frame(0, host, "eth0", bytes(14) + header + udp)


def test_questions_are_recognised_at_the_server() -> None:
    frames = [
        frame(4, 7, 4000),
        frame(6, 8, 6000),
        frame(4, 9, 5000),
        frame(4, 10, 4000, "router"),
        Frame(0, "server", "eth0", bytes(14) + b"\x45" + bytes(8) + b"\x01" + bytes(10)),
    ]
    assert arrived(frames, frozenset({4000, 6000})) == {7, 8}
