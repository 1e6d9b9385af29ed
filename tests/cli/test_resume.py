"""`lunabridge resume` passes values both ways as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from bridge import cli
from bridge.errors import UsageError
from bridge.words import values

kernel = pytest.mark.kernel
Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nil", None),
        ("true", True),
        ("false", False),
        ("53", 53),
        ("-1", -1),
        ("+7", 7),
        ("007", 7),
        ("0x35", 0x35),
        ("0xffffffffffffffff", -1),
        ("-0x1", -1),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("block", b"block"),
        ("True", b"True"),
        ("1.5", b"1.5"),
        ("12a", b"12a"),
        ("", b""),
        ("-", b"-"),
        ('"53"', b"53"),
        ("'nil'", b"nil"),
        ("'", b"'"),
        ('""', b""),
        ('"--x"', b"--x"),
        ("é", "é".encode()),
        ("\udcff", b"\xff"),
        ("٣", "٣".encode()),
    ],
)
def test_what_a_word_stands_for(text: str, value: object) -> None:
    assert values([text]) == (value,)
    assert type(values([text])[0]) is type(value)


@pytest.mark.parametrize("text", ["9223372036854775808", "0x10000000000000000", "-9" * 20])
def test_integers_beyond_64_bits_and_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="as a string"):
        values([text])


def test_a_mistyped_option_is_not_passed_to_the_script(capsys: Output) -> None:
    assert cli.run(["resume", "1", "--jsn"]) == 2
    assert "no option --jsn" in capsys.readouterr().err


def test_it_needs_a_lab_and_a_runtime(capsys: Output) -> None:
    assert cli.run(["resume", "--lab", "no-such-lab", "1"]) == 3
    assert "lunabridge lab up --name no-such-lab" in capsys.readouterr().err
    assert cli.run(["resume"]) == 2


def native(*arguments: str) -> int:
    return cli.run(["resume", "--native", *arguments])


ECHO = "local function again(...) return again(coroutine.yield(...)) end again()"


@kernel
def test_values_go_there_and_come_back(script: Callable[..., object], capsys: Output) -> None:
    script(ECHO, name="mirror")
    words = ["a b", "-5", "true", "false", "nil", '"1"']
    assert native("mirror", *words) == 0
    assert capsys.readouterr().out == "a b\n-5\ntrue\nfalse\nnil\n1\n"
    assert native("--json", "mirror", *words) == 0
    assert json.loads(capsys.readouterr().out) == ["a b", -5, True, False, None, "1"]


@kernel
def test_no_result_prints_nothing_and_one_nil_a_line(
    script: Callable[..., object], capsys: Output
) -> None:
    script("coroutine.yield() coroutine.yield() return nil", name="two")
    assert native("two") == 0
    assert capsys.readouterr().out == ""
    assert native("two") == 0
    assert capsys.readouterr().out == "nil\n"


@kernel
def test_bytes_that_are_no_text_survive(
    script: Callable[..., object], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    script(r"while true do coroutine.yield('\xff\0') end", name="bytes")
    assert native("bytes", "--json") == 0
    assert json.loads(capfdbinary.readouterr().out) == [{"hex": "ff00"}]
    assert native("bytes") == 0
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"\xff\0\n"


@kernel
def test_an_error_of_the_script_is_told_and_exits_with_1(
    script: Callable[..., object], capsys: Output
) -> None:
    script("coroutine.yield()\nerror('no such list')", name="mine")
    assert native("mine") == 1
    assert "mine:2: no such list" in capsys.readouterr().err


@kernel
def test_a_runtime_is_found_by_number_and_name(
    script: Callable[..., object], capsys: Output
) -> None:
    first = script("coroutine.yield() return 'first'", name="same")
    script("coroutine.yield() return 'second'", name="same")
    assert native("same") == 2
    assert str(first.id) in capsys.readouterr().err  # type: ignore[attr-defined]
    assert native(str(first.id)) == 0  # type: ignore[attr-defined]
    assert capsys.readouterr().out == "first\n"
    assert native("other") == 1
    assert "no runtime other" in capsys.readouterr().err


@kernel
def test_without_the_module_there_is_no_runtime(capsys: Output) -> None:
    assert native("1") == 1
    assert "no runtime 1" in capsys.readouterr().err
