"""How labs end: crashes, kills and interrupts leave nothing and say what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import GuestCrashed, LabError, LabTimeout
from bridge.lab import Lab, Options, image, recipe
from bridge.lab.machine import PORTS
from bridge.lab.progress import silent
from bridge.lab.running import prepare
from bridge.lab.saved import Store, store_for

Tool = Callable[..., "subprocess.Popen[bytes]"]
Call = Callable[..., "subprocess.CompletedProcess[bytes]"]


def machines_of(pid: int) -> list[int]:
    """Return the QEMU processes below ``pid``."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, task.read_text().split())
    below = [found for child in children for found in machines_of(child)]
    return below + [pid for pid in children if "qemu" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except FileNotFoundError:
        return ""


def eventually(condition: Callable[[], object], timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def files_below(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.rglob("*") if entry.name != ".registry")


def run_until_it_speaks(
    tool: Tool, *arguments: str, **environment: str
) -> subprocess.Popen[bytes]:
    process = tool(*arguments, **environment)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    return process


def test_a_panic_is_a_crash_with_the_consoles_last_words() -> None:
    with Lab.boot(progress=silent) as lab:
        start = time.monotonic()
        with pytest.raises(GuestCrashed, match="sysrq triggered crash") as caught:
            lab.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], timeout_s=30)
        assert time.monotonic() - start < 15
        assert "Kernel panic" in caught.value.console
        with pytest.raises(GuestCrashed):
            lab.run(["true"], timeout_s=20)


def test_a_panic_while_booting_says_so() -> None:
    options = Options(append=("rdinit=/no/such/init", "root=/dev/none"))
    with pytest.raises(GuestCrashed, match="while it booted: kernel panic") as caught:
        Lab.boot(options, progress=silent)
    assert "Kernel panic" in caught.value.console


def test_a_guest_comes_back_from_where_it_was_saved_with_the_right_time() -> None:
    Lab.boot(progress=silent).close()  # saves it where it is not saved yet
    with Lab.boot(progress=silent) as lab:
        assert lab.facts.restored
        clock = float(lab.run(["date", "+%s.%N"], timeout_s=20, check=True).stdout)
        assert abs(clock - time.time()) < 5


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Where this test alone saves guests: a cache that links to the image's files."""
    built = image.ensure(progress=silent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = image.image_dir(recipe.load())
    mine.mkdir(parents=True)
    for name in ("sysroot", "root.squashfs", "vmlinux", "release"):
        (mine / name).symlink_to(built.directory / name)
    found = store_for(Options(), prepare(Options(), silent), "tcg")
    assert found
    return found


def test_a_saved_guest_that_is_spoilt_is_booted_instead_and_saved_anew(store: Store) -> None:
    store.path.write_bytes(b"spoilt" * 100)
    with Lab.boot(Options(acceleration="tcg"), progress=silent) as lab:
        assert not lab.facts.restored
        assert lab.run(["true"], timeout_s=20).returncode == 0
    assert store.path.stat().st_size > 1 << 20
    with Lab.boot(Options(acceleration="tcg"), progress=silent) as lab:
        assert lab.facts.restored


def test_a_saved_guest_that_was_replaced_is_not_discarded(store: Store) -> None:
    store.path.write_bytes(b"spoilt")
    spoilt = store.open()
    assert spoilt is not None
    store.path.unlink()
    store.path.write_bytes(b"somebody saved it anew")
    store.discard(spoilt)
    assert store.path.exists()
    os.close(spoilt)


def test_a_fresh_guest_is_booted() -> None:
    with Lab.boot(Options(fresh=True), progress=silent) as lab:
        assert not lab.facts.restored
        assert "Run /init as init process" in lab.console_tail(2000)


def test_a_boot_that_does_not_end_says_how_far_it_came() -> None:
    options = Options(append=("rdinit=/bin/sh",), boot_timeout_s=6)
    with pytest.raises(LabTimeout, match="the kernel started, but no command"):
        Lab.boot(options, progress=silent)


def test_kill_9_leaves_no_machine_and_no_file(
    tool: Tool, runtime_dir: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    script = ["lab", "run", "--", "sh", "-c", "echo up; sleep 60"]
    with run_until_it_speaks(tool, *script, TMPDIR=str(scratch)) as process:
        machines = machines_of(process.pid)
        assert len(machines) == 1
        process.kill()
        process.wait()
    assert eventually(lambda: not command_of(machines[0]))
    assert files_below(scratch) == []
    assert files_below(runtime_dir) == ["lunatik-bridge"]


def test_an_interrupt_reaches_the_command_and_its_status_comes_back(tool: Tool) -> None:
    command = "trap 'echo interrupted; exit 7' INT; echo up; while :; do sleep 0.1; done"
    with run_until_it_speaks(tool, "lab", "run", "--", "sh", "-c", command) as process:
        machines = machines_of(process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert output == b"interrupted\n"
    assert process.returncode == 7
    assert eventually(lambda: not command_of(machines[0]))


def test_a_second_interrupt_ends_what_ignores_the_first(tool: Tool) -> None:
    command = "trap '' INT; echo up; while :; do sleep 0.1; done"
    with run_until_it_speaks(tool, "lab", "run", "--", "sh", "-c", command) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL


def test_statuses_of_the_command_line(call: Call) -> None:
    """A time-out, a crash and a usage error are told apart by their codes."""
    assert call("lab", "up").returncode == 0
    try:
        timed_out = call("lab", "run", "--timeout", "0.5", "--", "sleep", "60")
        assert timed_out.returncode == 124
        assert b"no end within 0.5 s" in timed_out.stderr
        assert call("lab", "run", "--", "sh", "-c", "exit 5").returncode == 5
        assert call("lab", "up").returncode == 3
        crash = "echo c >/proc/sysrq-trigger; sleep 9"
        crashed = call("lab", "run", "--", "sh", "-c", crash)
        assert crashed.returncode == 255
        assert b"Kernel panic" in crashed.stderr
    finally:
        call("lab", "down")
    assert call("lab", "run").returncode == 2
    assert call("lab", "down").returncode == 3


def test_a_lab_that_is_up_is_reused_and_leaves_nothing_when_down(
    call: Call, runtime_dir: Path
) -> None:
    assert call("lab", "up").returncode == 0
    status = json.loads(call("lab", "status", "--json").stdout)
    assert [(row["name"], row["answers"]) for row in status["labs"]] == [("default", True)]
    call("lab", "run", "--", "touch", "/tmp/mark")
    assert call("lab", "run", "--", "test", "-e", "/tmp/mark").returncode == 0
    assert call("lab", "down").returncode == 0
    assert files_below(runtime_dir) == ["lunatik-bridge"]


def test_a_client_that_is_killed_takes_its_command_and_frees_its_port(
    tool: Tool, call: Call
) -> None:
    assert call("lab", "up").returncode == 0
    try:
        for _ in range(PORTS + 2):
            script = ["lab", "run", "--", "sh", "-c", "echo up; sleep 6789"]
            with run_until_it_speaks(tool, *script) as process:
                process.kill()
        with Lab.attach() as lab:
            search = ["pgrep", "-f", "sleep 678[9]"]
            assert eventually(lambda: lab.run(search, timeout_s=20).returncode == 1)
    finally:
        call("lab", "down")


def test_killing_up_before_the_lab_is_ready_leaves_nothing(
    tool: Tool, runtime_dir: Path
) -> None:
    run = runtime_dir / "lunatik-bridge" / "default"
    with tool("lab", "up") as process:
        assert eventually((run / "console.log").exists)
        process.kill()
    assert eventually(lambda: not run.exists())


def test_a_killed_supervisor_takes_its_machine_and_is_found_stale(
    call: Call, runtime_dir: Path
) -> None:
    assert call("lab", "up").returncode == 0
    run = runtime_dir / "lunatik-bridge" / "default"
    machine = next(pid for pid in all_processes() if holds(pid, run / "console.log", "qemu"))
    supervisor = int(Path(f"/proc/{machine}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    assert eventually(lambda: not command_of(machine))
    assert run.exists()
    status = json.loads(call("lab", "status", "--json").stdout)
    assert status == {"labs": [], "image": status["image"], "removed": [str(run)]}
    with pytest.raises(LabError, match="no lab 'default' is up"):
        Lab.attach()


def all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def holds(pid: int, path: Path, program: str) -> bool:
    if program not in command_of(pid):
        return False
    fds = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.path.realpath(fd) == str(path) for fd in fds)


def test_without_qemu_the_environment_is_lacking(call: Call, tmp_path: Path) -> None:
    done = call("lab", "run", "--", "true", PATH=str(tmp_path))
    assert done.returncode == 3
    assert b"qemu-system-x86_64" in done.stderr
    assert b"install" in done.stderr
