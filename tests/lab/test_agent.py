"""The agent's side of a port: commands, streams, files, and rude clients."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.errors import LabError, LabTimeout
from bridge.lab import channel as channels
from bridge.lab.channel import Deadline
from bridge.lab.guest.frames import LINE_LIMIT, WINDOW, Lines, decode, encode, pack, unpack

if TYPE_CHECKING:
    from conftest import Agent

if TYPE_CHECKING:
    from conftest import Agent


def collect(session: channels.Session) -> bytearray:
    output = bytearray()
    session.on_stdout = output.extend
    return output


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while process_exists(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not process_exists(pid)


@pytest.mark.parametrize("fields", [(), (b"",), (b"a b\nc",), (bytes(range(256)), b"", b"x")])
def test_a_frame_survives_the_way_there_and_back(fields: tuple[bytes, ...]) -> None:
    frame = encode("VERB", *fields)
    assert frame.count(b"\n") == 1
    assert decode(frame[:-1]) == ("VERB", list(fields))


@pytest.mark.parametrize("line", [b"VERB abc", b"\xff YQ=="])
def test_a_torn_frame_is_no_frame(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(line)


def test_strings_survive_packing_even_where_they_are_empty_or_not_utf8() -> None:
    items = ["", "a b", "é", os.fsdecode(b"\xff")]
    assert unpack(pack(items)) == items


def test_lines_are_cut_wherever_the_stream_was_torn() -> None:
    lines = Lines()
    assert [lines.feed(piece) for piece in (b"a", b"b\nc\n", b"", b"d\n")] == [
        [],
        [b"ab", b"c"],
        [],
        [b"d"],
    ]


def test_an_endless_line_does_not_fill_the_memory() -> None:
    lines = Lines()
    for _ in range(5):
        lines.feed(b"x" * LINE_LIMIT)
    assert len(lines.feed(b"\n")[0]) <= LINE_LIMIT


@pytest.mark.parametrize("status", [0, 1, 3, 127, 255])
def test_an_exit_code_is_the_commands(agent: Agent, status: int) -> None:
    assert agent.start("sh", "-c", f"exit {status}").wait(10) == status


def test_a_death_by_signal_is_negative(agent: Agent) -> None:
    assert agent.start("sh", "-c", "kill -9 $$").wait(10) == -signal.SIGKILL


def test_a_missing_command_is_127_and_says_so(agent: Agent) -> None:
    session = agent.start("no-such-program")
    assert session.wait(10) == 127
    assert b"no-such-program" in session.stderr


def test_binary_streams_pass_unharmed_and_apart(agent: Agent) -> None:
    data = bytes(range(256)) * 4096
    session = agent.start("sh", "-c", "cat; echo done >&2")
    output = collect(session)
    session.write(data)
    session.close_stdin()
    assert session.wait(20) == 0
    assert output == data
    assert session.stderr == b"done\n"


def test_a_signal_is_not_stuck_behind_input_that_nobody_reads(agent: Agent) -> None:
    session = agent.start("sleep", "60")
    session.write(bytes(20 * WINDOW))
    session.pump(0.2)
    assert session.backlog_bytes >= 20 * WINDOW - WINDOW - 65536
    session.signal(signal.SIGTERM)
    assert session.wait(10) == -signal.SIGTERM


def test_a_command_that_closes_its_input_does_not_stop_the_writer(agent: Agent) -> None:
    session = agent.start("sh", "-c", "exec <&-; sleep 0.3; echo alive")
    output = collect(session)
    session.write(bytes(4 * WINDOW))
    assert session.wait(10) == 0
    assert output == b"alive\n"


def test_a_background_child_on_the_pipes_does_not_hold_the_session(agent: Agent) -> None:
    session = agent.start("sh", "-c", "sleep 30 & echo $!")
    output = collect(session)
    start = time.monotonic()
    assert session.wait(10) == 0
    assert time.monotonic() - start < 3
    pid = int(output)
    assert process_exists(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_time_out_ends_the_command_and_is_told_apart(agent: Agent) -> None:
    session = agent.start("sleep", "61")
    with pytest.raises(LabTimeout, match=r"no end within 0\.2 s; terminated"):
        session.wait(0.2)
    assert session.returncode == -signal.SIGTERM


def test_a_command_deaf_to_the_polite_signal_is_killed(agent: Agent) -> None:
    session = agent.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
    output = collect(session)
    while not output:
        session.pump(1)
    with pytest.raises(LabTimeout, match="terminated"):
        session.wait(0.1)
    assert session.returncode == -signal.SIGKILL


def test_a_guest_that_answers_nothing_is_called_hanging(agent: Agent) -> None:
    session = agent.start("sleep", "62")
    session.pump(0.2)
    agent.process.send_signal(signal.SIGSTOP)
    with pytest.raises(LabTimeout, match="the guest hangs"):
        session.wait(0.1)
    agent.process.send_signal(signal.SIGCONT)


def test_lines_come_as_they_are_written_and_the_last_needs_no_newline(agent: Agent) -> None:
    session = agent.start("sh", "-c", "echo one; read x; printf 'two\nthree'")
    lines = session.lines(10)
    assert next(lines) == "one"
    session.write(b"go on\n")
    assert list(lines) == ["two", "three"]
    assert session.returncode == 0


def test_a_greeting_resynchronises_after_a_client_died_inside_a_frame(agent: Agent) -> None:
    first = agent.start("sh", "-c", "echo $$; cat /dev/zero")
    output = collect(first)
    while b"\n" not in output:
        first.pump(1)
    pid = int(output.split(b"\n")[0])
    # Die in the middle of a frame, with megabytes of the guest's unread.
    agent.sock.setblocking(True)
    agent.sock.sendall(encode("STDIN", b"x" * 999)[:500])
    assert agent.start("sh", "-c", "exit 9").wait(10) == 9
    assert wait_until_gone(pid)


def test_a_host_that_hangs_up_takes_its_command_with_it(agent: Agent) -> None:
    session = agent.start("sh", "-c", "sleep 63 & echo $!; wait")
    output = collect(session)
    while b"\n" not in output:
        session.pump(1)
    agent.sock.close()
    assert wait_until_gone(int(output))
    assert agent.process.wait(5) == 0


def test_a_file_arrives_whole_with_its_mode(agent: Agent, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "er" / "target"
    source.write_bytes(os.urandom(300_000))
    channels.put_file(agent.channel(), source, str(target), 0o751, Deadline(10))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o751
    assert channels.get_file(agent.channel(), str(target), Deadline(10)) == source.read_bytes()


def test_a_file_cut_off_on_its_way_leaves_nothing(agent: Agent, tmp_path: Path) -> None:
    channel = agent.channel()
    channel.send("PUT", os.fsencode(tmp_path / "half"), b"644")
    channel.send("DATA", b"only the beginning")
    agent.channel()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/no/such/file", "/"])
def test_a_file_that_cannot_be_read_is_an_error_with_its_name(agent: Agent, path: str) -> None:
    with pytest.raises(LabError, match=f"{path}: "):
        channels.get_file(agent.channel(), path, Deadline(10))


def test_a_file_that_cannot_be_written_is_an_error(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="file"):
        channels.put_file(
            agent.channel(), tmp_path / "file", f"{tmp_path}/file/below", 0o644, Deadline(10)
        )


def test_a_silent_port_is_a_time_out() -> None:
    import socket

    near, far = socket.socketpair()
    with near, far, pytest.raises(LabTimeout, match="does not answer"):
        channels.Channel(near).greet(Deadline(0.2))
