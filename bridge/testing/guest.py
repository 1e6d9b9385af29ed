"""pytest inside the lab: run the tests named on standard input, report as JSON lines.

Standard input also has the options that tests look at.

Standard output carries the events alone; whatever pytest and the tests print goes
to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

ARGUMENTS = [
    "-p", "bridge.testing.plugin",
    "-p", "no:cacheprovider",
    "-c", "pyproject.toml",
    "-o", "addopts=--import-mode=importlib --strict-markers --strict-config",
    "--basetemp=/tmp/pytest",
    "-q",
]  # fmt: skip


class Reporter:
    """The plugin that sends each report to the host as it is made."""

    def __init__(self, descriptor: int) -> None:
        self._out = os.fdopen(descriptor, "w", buffering=1)
        self._config: pytest.Config | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep what serialising a report takes."""
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report."""
        assert self._config is not None
        data = self._config.hook.pytest_report_to_serializable(
            config=self._config, report=report
        )
        self._send(event="report", report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Say that a test's last report was sent."""
        self._send(event="finish", nodeid=nodeid)

    def _send(self, **event: Any) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()


def main() -> int:
    """Run the tests; return pytest's exit status."""
    wanted = json.load(sys.stdin)
    reporter = Reporter(os.dup(1))
    os.dup2(2, 1)
    return int(
        pytest.main([*ARGUMENTS, *wanted["options"], *wanted["nodeids"]], plugins=[reporter])
    )


if __name__ == "__main__":
    sys.exit(main())
