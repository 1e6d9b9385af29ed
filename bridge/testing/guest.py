"""pytest inside the lab: run groups of tests as they are asked for, report as JSON lines.

Each line of standard input is a request. One names tests, and the setting they are to
run in: it is run by a pytest of its own in a process of its own. The other asks what
memory all of them have lost. The end of the input ends this. Standard output carries
the events alone; whatever pytest and the tests print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import pytest

from bridge.testing import sanitizers
from bridge.testing.setting import Options, Setting

# What most groups of tests import: done once, here, it costs none of them anything.
_COMMON = (
    "bridge.lunatik",
    "bridge.traffic",
    "netns",
    "scapy.layers.inet6",
    "scapy.layers.dns",
)


class Reporter:
    """The plugin that sends each report to the host as it is made."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._config: pytest.Config | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep what serialising a report takes."""
        self._config = config

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Send what cannot be collected."""
        if report.failed:
            send(self._out, event="uncollected", nodeid=report.nodeid, text=report.longreprtext)

    def pytest_runtestloop(self) -> None:
        """Say that the tests are there, and are about to run."""
        send(self._out, event="collected")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report."""
        assert self._config is not None
        data = self._config.hook.pytest_report_to_serializable(
            config=self._config, report=report
        )
        send(self._out, event="report", nodeid=report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Say that a test's last report was sent."""
        send(self._out, event="finish", nodeid=nodeid)


def send(out: TextIO, **event: Any) -> None:
    """Send one event."""
    out.write(json.dumps(event) + "\n")
    out.flush()


def main() -> int:
    """Do what is asked for until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in _COMMON:
        import_module(name)
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted["request"] == "leaks":
            send(out, event="leaks", reports=sanitizers.leaks())
            continue
        process = os.fork()
        if process == 0:
            os._exit(_run(wanted, out))
        os.waitpid(process, 0)
        # A guest that has lost its watchdog is of no use to the next group.
        send(out, event="end", spent=sanitizers.lockdep_is_off())
    return 0


def _run(wanted: dict[str, Any], out: TextIO) -> int:
    setting = Setting(**wanted["setting"])
    directory = Path(setting.directory)  # not there if no file is
    os.chdir(directory if directory.is_dir() else setting.rootdir)
    sys.path[:0] = setting.import_paths
    arguments = setting.command_line(wanted["nodeids"])
    status = pytest.main(arguments, plugins=[Reporter(out), Options(setting)])
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
