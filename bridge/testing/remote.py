"""Kernel tests, seen from the host: hand them to a lab, bring their reports back.

One pytest runs in the guest for all of them. Where the guest dies or hangs, the
test that ran fails with the console in its report, and the rest go on in a new lab.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack
from time import monotonic
from typing import Any

import pytest

from bridge import module
from bridge.errors import BridgeError, GuestCrashed, LabTimeout, UsageError
from bridge.lab import Lab, Options
from bridge.lab.kernels import DEFAULT_KERNEL, options_for
from bridge.testing.plugin import fail_on_skip

Event = dict[str, Any]


class GuestRun:
    """A pytest running in a lab of its own over ``tests``: node ids, and options."""

    def __init__(self, options: Options, tests: dict[str, list[str]], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lines: deque[bytes] = deque()
        self._rest = b""
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab.boot(options))
            module.install(self.lab)
            self._session = stack.enter_context(
                self.lab.popen(["python3", "-m", "bridge.testing.guest"])
            )
            self._session.on_stdout = self._receive
            self._session.write(json.dumps(tests).encode())
            self._session.close_stdin()
            self._stack = stack.pop_all()

    def next_event(self) -> Event | None:
        """Return what happened next in the guest, None once its pytest has ended.

        Raises LabTimeout after ``timeout_s`` without anything, GuestCrashed.
        """
        deadline = monotonic() + self._timeout_s
        while not self._lines:
            if self._session.returncode is not None:
                return None
            if monotonic() > deadline:
                raise LabTimeout(f"the guest said nothing for {self._timeout_s:g} s")
            self._session.pump(1.0)
        event: Event = json.loads(self._lines.popleft())
        return event

    def explain(self) -> str:
        """What the guest's pytest printed, and the end of the console."""
        printed = self._session.stderr.decode(errors="replace")
        return f"{printed}\n--- console ---\n{self.lab.console_tail()}"

    def close(self) -> None:
        """End pytest and the lab."""
        self._stack.close()

    def _receive(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(lines)


class Remote:
    """The plugin that runs kernel tests in the lab."""

    def __init__(self, config: pytest.Config) -> None:
        self._timeout_s = float(config.getini("lunabridge_timeout_s"))
        self._kernel: str = (
            config.getoption("--kernel") or config.getini("lunabridge_kernel") or DEFAULT_KERNEL
        )
        try:
            self._options = options_for(self._kernel)
        except UsageError as error:
            raise pytest.UsageError(f"--kernel: {error}") from None
        self._test_options = ["--long"] if config.getoption("--long") else []
        self._run: GuestRun | None = None
        self._waiting: list[str] = []

    def pytest_report_header(self) -> str:
        """Say where kernel tests will run."""
        return f"lunabridge: kernel tests run in the lab, kernel {self._kernel}"

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which tests the guest is to run."""
        self._waiting = [item.nodeid for item in session.items if _is_kernel(item)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Run a kernel test in the guest; others run here."""
        if not _is_kernel(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        """End the lab."""
        self._drop_run()

    def _reports(self, item: pytest.Item) -> Generator[pytest.TestReport, None, None]:
        try:
            run = self._running()
            while (event := run.next_event()) is not None:
                if event.get("nodeid") == item.nodeid and event["event"] == "finish":
                    break
                if event["event"] == "report":
                    yield _deserialised(item.config, event["report"])
            else:
                yield _failure(item, f"the guest's pytest ended early\n{run.explain()}")
                self._drop_run()
        except BridgeError as error:
            yield _failure(item, _explanation(error, self._run))
            self._drop_run()
        finally:
            self._waiting.remove(item.nodeid)

    def _running(self) -> GuestRun:
        if self._run is None:
            tests = {"nodeids": list(self._waiting), "options": self._test_options}
            self._run = GuestRun(self._options, tests, self._timeout_s)
        return self._run

    def _drop_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.close()


def _is_kernel(item: pytest.Item) -> bool:
    return item.get_closest_marker("kernel") is not None


def _deserialised(config: pytest.Config, data: Event) -> pytest.TestReport:
    restore: Callable[..., Any] = config.hook.pytest_report_from_serializable
    report: pytest.TestReport = restore(config=config, data=data)
    if isinstance(report.longrepr, list):  # a skip's, which JSON made of a tuple
        report.longrepr = tuple(report.longrepr)
    return fail_on_skip(config, report)


def _explanation(error: BridgeError, run: GuestRun | None) -> str:
    if isinstance(error, GuestCrashed):
        return f"the guest crashed: {error}\n--- console ---\n{error.console}"
    return f"{error}\n{run.explain()}" if run else str(error)


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=text,
        when="call",
    )
