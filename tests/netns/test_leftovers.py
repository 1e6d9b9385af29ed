from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from netns import clean_leftovers, namespace, owner

if TYPE_CHECKING:
    from collections.abc import Callable

    Names: TypeAlias = Callable[[], set[str]]

pytestmark = pytest.mark.kernel


def _names(holder: subprocess.Popen[str]) -> list[str]:
    assert holder.stdout is not None
    names = holder.stdout.readline().split()
    assert len(names) == 3
    return names


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, {130, -2}), (signal.SIGTERM, {143}), (signal.SIGHUP, {129})],
)
def test_signals_leave_nothing(
    names_now: Names, holder: subprocess.Popen[str], number: signal.Signals, status: set[int]
) -> None:
    names = _names(holder)
    inodes = [(namespace.DIRECTORY / name).stat().st_ino for name in names]
    holder.send_signal(number)
    assert holder.wait(60) in status
    assert not names_now() & set(names)
    assert not (owner.RECORDS / names[0].split("-")[1]).exists()
    assert [namespace.processes_inside(inode) for inode in inodes] == [[], [], []]


def test_what_a_killed_run_leaves_is_found_and_removed(
    names_now: Names, holder: subprocess.Popen[str]
) -> None:
    names = _names(holder)
    inode = (namespace.DIRECTORY / names[0]).stat().st_ino
    holder.kill()
    holder.wait()
    assert set(names) <= names_now()
    removed = clean_leftovers()
    assert {f"network namespace {name}" for name in names} <= set(removed)
    assert any("(sleep)" in line for line in removed)
    assert not names_now() & set(names)
    assert namespace.processes_inside(inode) == []
    assert clean_leftovers() == []


def test_a_worker_dies_with_its_killed_owner(holder: subprocess.Popen[str]) -> None:
    names = _names(holder)
    inode = (namespace.DIRECTORY / names[0]).stat().st_ino
    workers = [pid for pid, name in namespace.processes_inside(inode) if name != "sleep"]
    assert len(workers) == 1
    watch = os.pidfd_open(workers[0])
    holder.kill()
    holder.wait()
    # Readable once the process has ended; it inherited nothing that would hold it.
    os.set_blocking(watch, False)
    import select

    assert select.select([watch], [], [], 60)[0]
    os.close(watch)


def test_a_live_run_is_not_touched(names_now: Names, holder: subprocess.Popen[str]) -> None:
    names = _names(holder)
    assert not [line for line in clean_leftovers() if names[0] in line]
    assert set(names) <= names_now()
    assert holder.poll() is None


def test_namespaces_of_others_are_not_touched() -> None:
    name = f"lb-other-{os.getpid()}"  # even one with our prefix, but without a record
    namespace.create(name)
    try:
        clean_leftovers()
        assert (namespace.DIRECTORY / name).exists()
    finally:
        namespace.remove(name)


def test_half_made_names_are_removed_too() -> None:
    # What is left when a run is killed between making the file and mounting on it.
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        run = owner.claim()
        Path(namespace.DIRECTORY, f"{run.prefix}client").touch()
        os.write(write, run.prefix.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    prefix = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert clean_leftovers() == [f"network namespace {prefix}client"]
    assert not (namespace.DIRECTORY / f"{prefix}client").exists()


def test_removal_can_be_repeated() -> None:
    namespace.remove("lb-never-was")
