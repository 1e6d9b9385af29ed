"""Run directories: a lab lives as long as its lock is held."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.errors import LabError, UsageError
from bridge.lab import rundir
from bridge.lab.rundir import RunDir
from bridge.lab.running import Facts

pytestmark = pytest.mark.usefixtures("runtime_dir")


def test_a_claimed_lab_is_alive_until_its_lock_goes() -> None:
    lab = RunDir("one")
    assert not lab.is_alive()
    lock = lab.claim()
    assert lab.is_alive()
    assert rundir.remove_stale() == []
    os.close(lock)
    assert not lab.is_alive()


def test_a_name_is_taken_once() -> None:
    lock = RunDir("one").claim()
    with pytest.raises(LabError, match="up already"):
        RunDir("one").claim()
    os.close(lock)


def test_a_stale_directory_is_found_and_removed() -> None:
    lab = RunDir("one")
    os.close(lab.claim())
    assert lab.path.exists()
    assert rundir.remove_stale() == [str(lab.path)]
    assert rundir.all_labs() == []


def test_a_stale_name_can_be_claimed_again() -> None:
    os.close(RunDir("one").claim())
    os.close(RunDir("one").claim())


def test_facts_survive_being_written() -> None:
    lab, facts = RunDir("one"), Facts("6.12", "tcg", 3.5, "0123")
    os.close(lab.claim())
    assert lab.read_facts() is None
    lab.write_facts(facts)
    assert lab.read_facts() == facts


def test_sockets_work_however_long_the_path_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    lab = RunDir("one")
    os.close(lab.claim())
    with lab.listen("control") as server, lab.connect("control") as client:
        client.sendall(b"x")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(1) == b"x"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 40])
def test_a_name_cannot_leave_its_directory(name: str) -> None:
    with pytest.raises(UsageError):
        RunDir(name)


def test_a_directory_open_to_others_is_refused(runtime_dir: Path) -> None:
    (runtime_dir / "lunatik-bridge").mkdir(mode=0o777)
    (runtime_dir / "lunatik-bridge").chmod(0o777)
    with pytest.raises(LabError, match="not private"):
        rundir.base_dir()
