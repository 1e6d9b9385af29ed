"""Tests that mean nothing on the kernel of this run: left out, and counted.

They are deselected, not skipped, so --fail-on-skip lets them pass: the test says by its
markers which kernels it is about, and why.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from bridge.lab.kernels import DEFAULT_KERNEL


class LeftOut:
    """The plugin that leaves them out.

    ``release`` is the kernel's, as in `uname -r`, its first two numbers at least.
    """

    def __init__(self, release: str, *, sanitizer: bool) -> None:
        self._release = release
        self._sanitizer = sanitizer
        self._counts: Counter[str] = Counter()

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out tests that are for another kernel."""
        reasons = [(item, self._why_not(item)) for item in items]
        left_out = [item for item, reason in reasons if reason]
        items[:] = [item for item, reason in reasons if not reason]
        self._counts.update(reason for _, reason in reasons if reason)
        if left_out:
            config.hook.pytest_deselected(items=left_out)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which tests were left out, and why."""
        for reason, count in sorted(self._counts.items()):
            terminalreporter.write_line(f"left out: {count} tests, {reason}")

    def _why_not(self, item: pytest.Item) -> str | None:
        if marker := item.get_closest_marker("stock_kernel"):
            return (
                f"not for the sanitizer kernel: {marker.args[0]}" if self._sanitizer else None
            )
        kernel = item.get_closest_marker("kernel")
        if kernel is None:
            return None
        if kernel.kwargs.get("sanitizer") and not self._sanitizer:
            return "for the sanitizer kernel (make test-sanitizers)"
        return self._too_old(item.nodeid, **kernel.kwargs)

    def _too_old(
        self,
        nodeid: str,
        *,
        min: str | None = None,  # noqa: A002 - the marker's word
        reason: str | None = None,
        **_: object,
    ) -> str | None:
        """Say what a kernel older than the default lacks.

        On others the test is run, and skipped there: it would be run on no kernel else,
        and nobody would know.
        """
        if min is None:
            return None
        if reason is None:
            raise pytest.UsageError(f"{nodeid}: kernel(min=...) needs a reason=... as well")
        if version(self._release) >= version(DEFAULT_KERNEL):
            return None
        if version(self._release) >= version(min):
            return None
        return f"not for Linux {self._release}, older than {min}: {reason}"


def version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel's release."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise pytest.UsageError(f"{release!r} is no release of a kernel, such as 6.12")
    return int(found[1]), int(found[2])
