"""`lunabridge check` finds what is wrong with policies, where it is, and says so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge import cli, lint
from bridge.check import Finding, located
from bridge.errors import BridgeError, EnvironmentLacking
from bridge.module import LUA_ROOT, PROJECT

PAGE = (PROJECT / "docs" / "lua-api.md").read_text()
Write = Callable[..., str]
Output = pytest.CaptureFixture[str]

# ---- luacheck -----------------------------------------------------------------


def remarks(source: str) -> list[tuple[int, str]]:
    return [(one.line, one.code) for one in lint.lint(lint.find(), source)]


def test_luacheck_knows_what_the_page_documents() -> None:
    assert lint.CONFIG.read_text() == lint.config(PAGE)


def test_another_page_gives_another_configuration() -> None:
    assert lint.config(PAGE.replace("| `rawlen` | stock |", "| `rawlen` | absent |")) != (
        lint.config(PAGE)
    )
    assert lint.config(PAGE.replace("`handover()`", "`hand()`")) != lint.config(PAGE)


def test_the_globals_of_the_kernel_are_known_and_others_are_not() -> None:
    assert remarks("print(string.rep('x', 3), math.maxinteger, lunatik.runtime)") == []
    assert remarks("lunatik._ENV.shared = 1\nfunction takeover(n) print(n) end") == []
    for name in ("io", "os", "debug", "package", "dofile", "skb", "netfilter"):
        assert remarks(f"print({name})") == [(1, "W113")]
    for name in ("string.dump", "math.floor", "math.pi", "lunatik.list"):
        assert remarks(f"\nprint({name})") == [(2, "W143")]
    assert remarks("x = 1") == [(1, "W111")]


@pytest.mark.parametrize(
    "path",
    [*sorted(LUA_ROOT.glob("*.lua")), PROJECT / "bridge" / "templates" / "policy.lua"],
    ids=lambda path: path.name,
)
def test_the_policies_and_libraries_of_the_tree_pass(path: Path) -> None:
    assert remarks(path.read_text()) == []


def test_what_is_no_lua_is_an_error_with_its_line() -> None:
    assert remarks("local x <const> = 1\nprint(x) )") == [(2, "E011")]


def test_a_luacheck_that_fails_is_no_luacheck_that_finds_nothing(tmp_path: Path) -> None:
    for script in ("echo no >&2; exit 4", "echo 'policy: what is this'", "exit 3"):
        program = tmp_path / "luacheck"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(BridgeError, match="luacheck failed"):
            lint.lint(str(program), "return 1")


def test_a_missing_luacheck_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentLacking, match="lua-check"):
        lint.find()


def test_strict_without_luacheck_exits_with_3_before_any_machine_boots(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.run(["check", "--strict", "accept"]) == 3
    assert "apt install lua-check" in capsys.readouterr().err


# ---- errors of the kernel -------------------------------------------------------


def test_an_error_in_the_script_has_its_line() -> None:
    finding = located("mine:7: oops", "\tmine:7: in main chunk", "mine", "dir/mine.lua")
    assert (finding.line, finding.message) == (7, "oops")
    assert str(finding) == "dir/mine.lua:7: oops"


def test_an_error_in_a_library_is_at_the_line_that_called_it() -> None:
    traceback = "\t[C]: in ?\n\tset.lua:3: in function 'new'\n\tmine:9: in main chunk"
    finding = located("set.lua:3: oops", traceback, "mine", "mine.lua")
    assert (finding.line, finding.message) == (9, "set.lua:3: oops")


def test_an_error_without_a_place_has_no_line() -> None:
    assert (
        str(located("too many hooks", None, "mine", "mine.lua")) == "mine.lua: too many hooks"
    )
    assert located("mine.x:7: no", None, "mine", "mine.lua").line is None


def test_a_name_that_lua_shortens_is_recognised() -> None:
    assert located(f"{'n' * 59}:4: oops", None, "n" * 63, "n.lua").line == 4


def test_a_finding_of_luacheck_shows_its_code() -> None:
    assert str(Finding("a.lua", 1, "unused", "W211")) == "a.lua:1: unused (W211)"


# ---- the verb ---------------------------------------------------------------------


def test_what_cannot_be_a_policy_is_found_without_a_machine(
    write: Write, capsys: Output
) -> None:
    names = [write(" \n", "empty"), write("\x1bLua", "compiled")]
    assert cli.run(["check", *names]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == names


def test_a_missing_file_and_no_file_are_usage_errors(capsys: Output) -> None:
    assert cli.run(["check", "no/such.lua"]) == 2
    assert "no file no/such.lua" in capsys.readouterr().err
    assert cli.run(["check"]) == 2


def native(*arguments: str) -> int:
    return cli.run(["check", "--native", *arguments])


@pytest.mark.kernel
def test_sound_policies_pass(hook: Write, capsys: Output) -> None:
    assert native(hook("return nf.action.ACCEPT"), "accept", "echo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("mine.lua: ok, 1 hook, ")
    assert ": ok, 0 hooks, " in lines[2]


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("local x = 1\n\nreturn x 1", 3, "<eof> expected near '1'"),
        ("local x = 1.5", 1, "malformed number near '1.5'"),
        ("\nerror('no reason')", 2, "no reason"),
        ("\n\nrequire 'nothing'", 3, "nothing"),
        ("\nrequire('set').new(5)", 2, "attempt to index"),
        ("local nf = require 'netfilter'\nnf.register{}", 2, "register: the field"),
        ("while true do end", 1, "budget"),
    ],
    ids=["syntax", "float", "error", "require", "library", "registration", "endless"],
)
def test_what_does_not_load_is_told_with_its_line(
    write: Write, capsys: Output, source: str, line: int, message: str
) -> None:
    assert native(write(source)) == 1
    told = capsys.readouterr().out
    assert told.startswith(f"mine.lua:{line}: "), told
    assert message in told.splitlines()[0]


@pytest.mark.kernel
def test_json_tells_of_each_policy(write: Write, capsys: Output) -> None:
    assert native("--json", write("error('x')"), "accept") == 1
    mine, accept = json.loads(capsys.readouterr().out)
    assert (mine["ok"], mine["loaded"], mine["findings"][0]["line"]) == (False, False, 1)
    assert "main chunk" in mine["findings"][0]["traceback"]
    assert (accept["ok"], accept["loaded"], accept["hooks"]) == (True, True, 1)
    assert accept["memory_bytes"] > 0


@pytest.mark.kernel
def test_nothing_stays_loaded(write: Write) -> None:
    assert native("accept", write("error('x')")) == 1
    assert not Path("/sys/module/lunatik").exists()
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    assert "lb-" not in listed.stdout
