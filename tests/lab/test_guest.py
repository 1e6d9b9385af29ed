"""A booted lab: commands, files and the project tree in a real guest."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bridge.errors import LabError, LabTimeout
from bridge.lab import Lab


def test_the_guest_runs_the_images_kernel(lab: Lab) -> None:
    done = lab.run(["uname", "-r"], timeout_s=20)
    assert done.stdout.decode().strip() == lab.kernel_release
    assert done.returncode == 0
    assert lab.acceleration in {"kvm", "tcg"}


def test_a_failing_command_gives_its_own_code(lab: Lab) -> None:
    assert lab.run(["sh", "-c", "exit 42"], timeout_s=20).returncode == 42
    with pytest.raises(LabError, match=r"status 42.*\n.*why"):
        lab.run(["sh", "-c", "echo why >&2; exit 42"], timeout_s=20, check=True)


def test_streams_are_binary_and_large(lab: Lab) -> None:
    data = os.urandom(500_000)
    assert lab.run(["cat"], stdin=data, timeout_s=60).stdout == data


def test_environment_and_directory_are_what_was_asked(lab: Lab) -> None:
    done = lab.run(["sh", "-c", "echo $A; pwd"], env={"A": "b c"}, cwd="/tmp", timeout_s=20)
    assert done.stdout == b"b c\n/tmp\n"


def test_a_hanging_command_is_a_time_out(lab: Lab) -> None:
    with pytest.raises(LabTimeout):
        lab.run(["sleep", "60"], timeout_s=0.5)
    assert lab.run(["true"], timeout_s=20).returncode == 0


def test_a_terminal_is_there_where_one_is_asked_for(lab: Lab) -> None:
    with lab.popen(["sh", "-c", "test -t 0 && stty size"], terminal=(33, 77)) as session:
        output = bytearray()
        session.on_stdout = output.extend
        assert session.wait(20) == 0
    assert output.strip() == b"33 77"


def test_several_commands_run_at_once(lab: Lab) -> None:
    """Each waits for the other's file, so one after the other they would never end."""
    statuses: list[int] = []

    def run(mine: str, other: str) -> None:
        script = f"touch /tmp/{mine}; until [ -e /tmp/{other} ]; do sleep 0.1; done"
        statuses.append(lab.run(["sh", "-c", script], timeout_s=30).returncode)

    threads = [threading.Thread(target=run, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0, 0]


def test_files_go_there_and_back(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(os.urandom(100_000))
    source.chmod(0o755)
    lab.put(source, "/run/lunatik/file")
    assert lab.get("/run/lunatik/file") == source.read_bytes()
    mode = lab.run(["stat", "-c", "%a", "/run/lunatik/file"], timeout_s=20).stdout
    assert mode.strip() == b"755"


def test_a_tree_is_mirrored_with_every_change(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "keep").write_text("same")
    (tmp_path / "change").write_text("before")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "gone").write_text("")
    (tmp_path / "link").symlink_to("keep")
    assert lab.synchronise(tmp_path, "/mirror") == 5
    assert lab.synchronise(tmp_path, "/mirror") == 0
    (tmp_path / "change").write_text("after")
    (tmp_path / "sub" / "gone").unlink()
    (tmp_path / "new").write_text("new")
    assert lab.synchronise(tmp_path, "/mirror") == 2
    found = lab.run(["sh", "-c", "ls; cat change new link"], cwd="/mirror", timeout_s=20)
    assert found.stdout == b"change\nkeep\nlink\nnew\npyproject.toml\nafternewsame"


def test_the_project_is_there_and_read_only(lab: Lab) -> None:
    done = lab.run(["sh", "-c", "test -e bridge/errors.py && touch here"], timeout_s=20)
    assert done.returncode != 0
    assert b"Read-only" in done.stderr


def test_the_tool_itself_runs_in_the_guest(lab: Lab) -> None:
    done = lab.run(["lunabridge", "--version"], timeout_s=40)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"lunabridge")


def test_the_tracers_needs_are_met(lab: Lab) -> None:
    """bcc compiles against the kernel's headers, both packages of them."""
    checks = (
        "test -e /lib/modules/$(uname -r)/build/include/generated/autoconf.h",
        "test -e /lib/modules/$(uname -r)/source/include/linux/skbuff.h",
        "test -e /sys/kernel/tracing/events && test -e /sys/fs/bpf",
        "ip -o link show lo | grep -q LOWER_UP",
    )
    for check in checks:
        assert lab.run(["sh", "-c", check], timeout_s=20).returncode == 0, check


def test_many_short_commands_in_a_row_all_end(lab: Lab) -> None:
    """A wake-up lost between agent and driver would leave one of these waiting."""
    for number in range(40):
        assert lab.run(["sh", "-c", f"exit {number}"], timeout_s=20).returncode == number
