"""What is looked at after each kernel test, on the kernel that ran it.

The kernel's log must show no splat, no network namespace and no runtime may be
left, and at the end of the session the module must unload, no memory be lost and, where
there is lockdep, it must still be watching.
"""

from __future__ import annotations

import os
import platform
import re
import select
import subprocess
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bridge.errors import BridgeError
from bridge.testing import sanitizers
from bridge.testing.leftout import LeftOut, version
from bridge.testing.plugin import IN_LAB

# The first words of what the kernel prints when it finds itself wrong, as in
# kernel/panic.c, lib/bug.c, lib/ubsan.c, mm/kasan/report.c, kernel/locking/lockdep.c,
# kernel/rcu/tree_stall.h, kernel/watchdog.c, mm/kmemleak.c.
SPLAT = re.compile(
    r"BUG\b|WARNING:|Oops|UBSAN:|KASAN:|KCSAN:|kernel BUG|general protection fault|"
    r"unable to handle|refcount_t:|scheduling while atomic|sleeping function called|"
    r"possible (?:recursive|circular|irq|deadlock)|INFO: (?:task|rcu|lockdep|possible)|"
    r"lockup|stall|unregister_netdevice: waiting|kmemleak: \d+ new|leaked reference|"
    r"ODEBUG:|Modules? .* still in use"
)
# What policies print goes to the same log, and may say anything.
POLICY_LINE = re.compile(r"lunatik: runtime \d+ ")

# Seconds that a printed line may take to become readable.
MARK_S = 10.0
# Lines that a splat is shown with: lockdep's, the longest, show two or three stacks.
SPLAT_LINES = 100


@dataclass(frozen=True, slots=True)
class Splat:
    """A fault that the kernel reports: its first line, and those printed after it."""

    head: str
    rest: list[str] = field(default_factory=list, compare=False)

    def __str__(self) -> str:
        return "\n    ".join([self.head, *self.rest])


class KernelLog:
    """The kernel's messages from now on, read from /dev/kmsg (dev-kmsg in ABI/testing).

    A line is readable once it is complete, which the next one may have to see to. So
    each look begins by printing a mark, and ends when the mark is read.
    """

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)
        self.splats()

    def splats(self) -> list[Splat]:
        """Return the faults reported since the last call, each once."""
        found: dict[str, Splat] = {}
        last: Splat | None = None
        for message in self._messages():
            if POLICY_LINE.match(message):
                continue
            if SPLAT.search(message) and message not in found:
                last = found[message] = Splat(message)
            elif last and len(last.rest) < SPLAT_LINES:
                last.rest.append(message)
        return list(found.values())

    def close(self) -> None:
        """Stop reading."""
        os.close(self._fd)

    def _messages(self) -> Iterator[str]:
        mark = f"lunabridge: looked at the log, {os.urandom(8).hex()}"
        Path("/dev/kmsg").write_text(f"{mark}\n")  # each opening may write ten lines in 5 s
        deadline = time.monotonic() + MARK_S
        while time.monotonic() < deadline:
            message = self._message()
            if message == mark:
                return
            if message is not None:
                yield message
        yield "BUG: the log cannot be read to its end, so it proves nothing"

    def _message(self) -> str | None:
        try:
            record = os.read(self._fd, 8192).decode(errors="replace")
        except BlockingIOError:
            select.select([self._fd], [], [], 0.1)
            return None
        except BrokenPipeError:
            return "BUG: the log overflowed before it was read, so it proves nothing"
        return record.partition(";")[2].partition("\n")[0]


class Gates:
    """The plugin that gates each kernel test."""

    def __init__(self, config: pytest.Config) -> None:
        left_out = LeftOut(platform.release(), sanitizer=sanitizers.present())
        config.pluginmanager.register(left_out, "lunabridge-left-out")

    def pytest_report_header(self) -> str:
        """Say where kernel tests run."""
        return f"lunabridge: kernel tests run here, on Linux {platform.release()}"

    @pytest.fixture(autouse=True, scope="session")
    def _lunabridge_session(
        self, request: pytest.FixtureRequest
    ) -> Generator[KernelLog, None, None]:
        alone = not os.environ.get(IN_LAB)  # in the lab, the host asks for what was lost
        if alone:
            sanitizers.forget_leaks()
        log = KernelLog()
        yield log
        problems = _unload()
        problems += [f"kernel log: {splat}" for splat in log.splats()]
        log.close()
        if alone:
            problems += sanitizers.leaks()
        if sanitizers.lockdep_is_off() and not _is_plant(request.session.items):
            problems.append("lockdep has turned itself off, so locks went unwatched")
        if problems:
            pytest.fail("\n".join(["at the end of the session:", *problems]), pytrace=False)

    @pytest.fixture(autouse=True)
    def _lunabridge_gate(
        self, request: pytest.FixtureRequest, _lunabridge_session: KernelLog
    ) -> Generator[None, None, None]:
        marker = request.node.get_closest_marker("kernel")
        if marker is None:
            yield
            return
        _skip_older_kernels(marker.kwargs.get("min"))
        log, namespaces = _lunabridge_session, _namespaces()
        problems = [f"kernel log, before this test: {splat}" for splat in log.splats()]
        yield
        problems += _judge_splats(request.node, log.splats())
        problems += [f"left behind: {name}" for name in sorted(_namespaces() - namespaces)]
        problems += _stop_runtimes()
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)


def _unload() -> list[str]:
    if not Path("/sys/module/lunatik").exists():
        return []
    done = subprocess.run(["rmmod", "lunatik"], capture_output=True, text=True, check=False)
    return [f"the module did not unload: {done.stderr.strip()}"] if done.returncode else []


def _is_plant(items: list[pytest.Item]) -> bool:
    """Return whether all there is is a test that wants a splat, after which it may be off."""
    return len(items) == 1 and items[0].get_closest_marker("expects_splat") is not None


def _skip_older_kernels(minimum: str | None) -> None:
    if minimum is None:
        return
    if version(platform.release()) < version(minimum):
        pytest.skip(f"needs Linux {minimum}, this is {platform.release()}")


def _judge_splats(node: pytest.Item, splats: list[Splat]) -> list[str]:
    markers = [
        marker
        for marker in node.iter_markers("expects_splat")
        if sanitizers.present() or not marker.kwargs.get("sanitizer")
    ]
    allowed = [marker.args[0] for marker in markers]
    expected = [marker.args[0] for marker in markers if not marker.kwargs.get("maybe")]
    problems = [
        f"kernel log: {splat}"
        for splat in splats
        if not any(text in splat.head for text in allowed)
    ]
    missing = [text for text in expected if not any(text in splat.head for splat in splats)]
    return problems + [f"kernel log: expected, but did not come: {text}" for text in missing]


def _namespaces() -> set[str]:
    return {f"network namespace {path.name}" for path in Path("/run/netns").glob("lb-*")}


def _stop_runtimes() -> list[str]:
    if not Path("/sys/module/lunatik").exists():
        return []
    from bridge.lunatik import Lunatik  # noqa: PLC0415 - slow to import

    problems = []
    with Lunatik.connect() as lunatik:
        for runtime in lunatik.runtimes():
            problems.append(f"left behind: runtime {runtime.id} ({runtime.name})")
            try:
                lunatik.stop(runtime.id, missing_ok=True)
            except BridgeError as error:
                problems.append(str(error))
    return problems
