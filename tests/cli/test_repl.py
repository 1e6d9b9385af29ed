"""`lunabridge repl` evaluates Lua in the kernel, line by line, and leaves nothing there."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from bridge import cli
from bridge.module import PROJECT
from bridge.place import Conversation
from bridge.repl import converse

Output = pytest.CaptureFixture[str]
REPL = [sys.executable, "-m", "bridge.cli", "repl", "--native"]
PATIENCE_S = 60.0

# ---- on the host: lines and answers are given -------------------------------------------


class Typed:
    """Lines, and keys that are no lines."""

    def __init__(self, *lines: str | type[BaseException], is_terminal: bool = True) -> None:
        self.is_terminal = is_terminal
        self.prompts: list[str] = []
        self._lines = [*lines, EOFError]

    def next(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self._lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    def history(self) -> AbstractContextManager[None]:
        return nullcontext()


class Answers:
    """Takes a chunk that ends with a dot for complete, one with "no" in it for wrong."""

    def __init__(self) -> None:
        self.chunks: list[str] = []

    def ask(self, request: dict[str, str]) -> dict[str, str]:
        chunk = request["chunk"]
        self.chunks.append(chunk)
        status = "error" if "no" in chunk else "ok" if chunk.endswith(".") else "more"
        return {"status": status, "output": f"<{chunk}>" * (status == "ok"), "message": "why"}


def test_a_chunk_goes_on_until_it_is_complete(capsys: Output) -> None:
    answers, typed = Answers(), Typed("one.", "", "two", "", "three.")
    assert not converse(answers, typed)
    assert answers.chunks == ["one.", "two", "two\n", "two\n\nthree."]
    assert typed.prompts == ["> ", "> ", "> ", ">> ", ">> ", "> "]
    assert capsys.readouterr().out == "<one.>\n<two\n\nthree.>\n"


def test_ctrl_c_gives_up_the_lines_of_a_terminal() -> None:
    answers, typed = Answers(), Typed("two", KeyboardInterrupt, "three.")
    assert not converse(answers, typed)
    assert answers.chunks == ["two", "three."]
    with pytest.raises(KeyboardInterrupt):
        converse(answers, Typed(KeyboardInterrupt, is_terminal=False))


def test_an_error_is_told_and_remembered(capsys: Output) -> None:
    assert converse(Answers(), Typed("no", "one."))
    out, err = capsys.readouterr()
    assert (out, err) == ("<one.>\n", "why\n")


def test_an_end_within_a_chunk_is_an_error(capsys: Output) -> None:
    assert converse(Answers(), Typed("two"))
    assert capsys.readouterr().err == "why\n"


def test_a_chunk_that_is_too_long_is_not_sent(capsys: Output) -> None:
    answers = Answers()
    assert converse(answers, Typed("é" * 28_673 + "."))
    assert answers.chunks == []
    assert "57,347 bytes, at most 57,344" in capsys.readouterr().err


# ---- in a kernel ----------------------------------------------------------------------


def piped(text: str | bytes) -> subprocess.CompletedProcess[bytes]:
    data = text.encode() if isinstance(text, str) else text
    return subprocess.run(REPL, cwd=PROJECT, input=data, capture_output=True, check=False)


def evaluated(text: str) -> list[str]:
    done = piped(text)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


@pytest.mark.kernel
def test_expressions_and_what_is_printed_are_shown_as_lua_does() -> None:
    assert evaluated(
        """1 + 1
x = 5
x, nil, true, 'text'
local y = 7; print(y, x)
return y
for i = 1, 2 do

  print(i)
end
require("linux").ifname(1)
"""
    ) == ["2", "5\tnil\ttrue\ttext", "7\t5", "nil", "1", "2", "lo"]


@pytest.mark.kernel
def test_errors_are_told_with_the_lines_that_led_to_them() -> None:
    done = piped("function f() error('deep') end\nf()\nx x\n1.5\nerror({})\n'after'\n")
    assert done.returncode == 1
    assert done.stdout == b"after\n"
    deep, rest = done.stderr.decode().split("\nstdin:1: syntax error near 'x'\n")
    assert deep.startswith("stdin:1: deep\nstack traceback:\n\t[C]\n\tstdin:1")
    assert "malformed number near '1.5'" in rest
    assert "(error object is a table value)" in rest


@pytest.mark.kernel
def test_a_chunk_that_yields_is_an_error_and_the_next_one_runs() -> None:
    done = piped("coroutine.yield(1)\n'after'\n")
    assert done.stderr.decode() == "attempt to yield from outside a coroutine\n"
    assert done.stdout == b"after\n"


@pytest.mark.kernel
def test_a_chunk_beyond_a_limit_costs_the_globals_but_not_the_session() -> None:
    done = piped("x = 1\nwhile true do end\nx\n")
    assert done.returncode == 1
    assert done.stdout == b"nil\n"
    assert "here is a new one" in done.stderr.decode()


@pytest.mark.kernel
def test_what_is_too_much_to_show_is_cut() -> None:
    (line, more) = evaluated("('x'):rep(30000)\n")
    assert len(line) == 24 * 1024
    assert more == "... (5424 bytes more)"


@pytest.mark.kernel
def test_bytes_that_are_no_text_reach_lua() -> None:
    done = piped(b"#'\xff\xfe'\n")
    assert done.stdout == b"2\n"


@pytest.mark.kernel
def test_an_incomplete_end_of_the_input_is_an_error() -> None:
    done = piped("for i = 1, 2 do\n")
    assert done.returncode == 1
    assert "<eof>" in done.stderr.decode()


def runtimes() -> str:
    """What is loaded, as far as anything is."""
    listed = [*REPL[:-2], "list", "--native", "--json"]
    done = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def wait_for(wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.kernel
def test_nothing_is_left_at_the_end_nor_after_a_kill(lunatik: object) -> None:
    assert evaluated("1\n") == ["1"]
    assert runtimes() == "[]"
    with subprocess.Popen(
        REPL, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"1\n"
        assert "repl" in runtimes()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        for pid in [*children.split(), process.pid]:
            os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: runtimes() == "[]")


class Screen:
    """A terminal with the repl in it."""

    def __init__(self, state: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(PROJECT)
            environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "dumb"}
            os.execvpe(REPL[0], REPL, environment)
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def read_until(self, wanted: bytes) -> None:
        end = time.monotonic() + PATIENCE_S
        while wanted not in self._seen:
            more = self._read(end)
            assert more, f"{wanted!r} is not in {self._seen!r}"
            self._seen += more
        self._seen = self._seen.partition(wanted)[2]

    def _read(self, end: float) -> bytes:
        """Return what comes; nothing at the end, or when it takes too long."""
        left_s = max(0.0, end - time.monotonic())
        if not select.select([self.descriptor], [], [], left_s)[0]:
            return b""
        try:
            return os.read(self.descriptor, 4096)
        except OSError:  # how a terminal says that nobody is there any more
            return b""

    def leave(self) -> int:
        """Type Ctrl-D, which takes a prompt; return the exit status."""
        self.read_until(b"> ")
        self.type(b"\x04")
        end = time.monotonic() + PATIENCE_S
        while self._read(end):
            pass
        assert time.monotonic() < end, "it does not end"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[[], Screen]]:
    opened: list[Screen] = []

    def start() -> Screen:
        opened.append(Screen(tmp_path))
        opened[-1].read_until(b"> ")
        return opened[-1]

    yield start
    for one in opened:
        os.close(one.descriptor)


@pytest.mark.kernel
def test_a_terminal_has_prompts_history_and_keys(screen: Callable[[], Screen]) -> None:
    first = screen()
    first.type(b"x = 40\n")
    first.read_until(b"> ")
    first.type(b"for i = 1, 2 do\n")
    first.read_until(b">> ")
    first.type(b"\x03")  # Ctrl-C gives up the loop
    first.read_until(b"> ")
    first.type(b"x + 2\n")
    first.read_until(b"\n42")
    assert first.leave() == 0
    second = screen()
    second.type(b"\x10\n")  # Ctrl-P calls the last line back
    second.read_until(b"attempt to perform arithmetic on a nil value (global 'x')")
    assert second.leave() == 0


@pytest.mark.kernel
def test_ctrl_c_ends_what_a_chunk_waits_for(screen: Callable[[], Screen]) -> None:
    terminal = screen()
    terminal.type(b'done = require("completion").new()\n')
    terminal.read_until(b"> ")
    terminal.type(b"print('wai' .. 'ting') return done:wait()\n")
    wait_for(lambda: '"state": "running"' in runtimes())
    terminal.type(b"\x03")
    terminal.read_until(b"nil\tinterrupt")
    assert terminal.leave() == 0


def test_it_says_what_it_lacks_without_root(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.run(["repl", "--native"]) == 3
    assert "needs root" in capsys.readouterr().err


class Half:
    """A guest half that answers once it was interrupted; Ctrl-C is hit so many times."""

    def __init__(self, hits: int, *, answers: bool) -> None:
        self.signals: list[int] = []
        self._hits = hits
        self._answers = answers

    def write(self, data: bytes) -> None:
        assert data == b"{}\n"

    def pump(self, timeout_s: float, watch: int | None) -> bool:
        if self._hits:
            self._hits -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return bool(select.select([watch], [], [], timeout_s)[0])

    def take(self) -> bytes:
        return b'{"status": "ok"}\n' if self.signals and self._answers else b""

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def status(self) -> int | None:
        return None


def test_ctrl_c_reaches_the_other_side_and_its_answer_comes() -> None:
    half = Half(1, answers=True)
    assert Conversation(half).ask({}) == {"status": "ok"}  # type: ignore[arg-type]
    assert half.signals == [signal.SIGINT]


def test_a_second_ctrl_c_gives_up() -> None:
    with pytest.raises(KeyboardInterrupt):
        Conversation(Half(2, answers=False)).ask({})  # type: ignore[arg-type]
