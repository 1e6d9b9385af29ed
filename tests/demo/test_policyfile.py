"""What cannot be a policy is refused before a machine is booted for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import policyfile
from bridge.errors import BridgeError, PolicyError, UsageError


def refused(policy: str, kind: type[BridgeError]) -> str:
    with pytest.raises(kind) as caught:
        policyfile.load(policy)
    assert caught.value.cure
    return str(caught.value)


def test_a_name_below_the_lua_root() -> None:
    file = policyfile.load("drop_port")
    assert file.name == "drop_port"
    assert "netfilter.register" in file.source
    assert policyfile.load("drop_port.lua") == file


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.lua"
    path.write_text("return 1")
    assert policyfile.load(str(path)) == policyfile.PolicyFile("mine", "return 1")


def test_a_path_without_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("return 2")
    assert policyfile.load("mine").source == "return 2"


def test_a_missing_file_and_an_unknown_name(tmp_path: Path) -> None:
    assert "no file" in refused(str(tmp_path / "no.lua"), UsageError)
    assert "dns_block" in refused("no_such_policy", UsageError)


def test_a_directory(tmp_path: Path) -> None:
    assert "directory" in refused(str(tmp_path), UsageError)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\x1bLua\x54\x00\x19\x93", "compiled Lua"),
        (b"\x7fELF\x02\x01\x01\x00\xff", "not UTF-8"),
        (b"return 1\0", "byte 8 is zero"),
        (b"-- \xe9t\xe9\n", "byte 3"),
        (b"x" * (60 * 1024 + 1), "61,441 bytes"),
    ],
)
def test_what_is_no_script(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "bad.lua"
    path.write_bytes(data)
    assert why in refused(str(path), PolicyError)


def test_the_largest_script_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "big.lua"
    path.write_bytes(b"-" * policyfile.SOURCE_MAX_BYTES)
    assert len(policyfile.load(str(path)).source) == policyfile.SOURCE_MAX_BYTES


def test_a_pipe_is_read(tmp_path: Path) -> None:
    assert "is empty" in refused("/dev/null", PolicyError)


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 200}.lua"
    path.write_text("return")
    assert len(policyfile.load(str(path)).name) == policyfile.NAME_MAX
