"""The pytest plugin: kernel tests run in the lab, or here with --native.

A test marked ``kernel`` is collected here and run in the guest, in a session that
all kernel tests share; its reports come back as if it had run here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from bridge.testing import artefacts

if TYPE_CHECKING:
    from collections.abc import Generator

    import pluggy

IN_LAB = "LUNABRIDGE_IN_LAB"

pytest_plugins = ["bridge.testing.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options and their twins in the ini file."""
    group = parser.getgroup("lunabridge", "packet policies in the kernel")
    group.addoption(
        "--native",
        action="store_true",
        help="run kernel tests on this machine's kernel, not in the lab",
    )
    group.addoption(
        "--kernel",
        metavar="KERNEL",
        help="the kernel that kernel tests run on in the lab: 6.12 (default), 6.1 or sanitizer",
    )
    group.addoption(
        "--guests",
        type=int,
        default=1,
        metavar="N",
        help="number of labs that share the kernel tests, file by file",
    )
    group.addoption(
        "--long",
        action="store_true",
        help="run fuzzing, stress and out-of-memory tests to the full count",
    )
    group.addoption(
        "--fail-on-skip",
        action="store_true",
        help="a skipped test is a failed one (for CI)",
    )
    parser.addini("lunabridge_native", "as --native", type="bool", default=False)
    parser.addini("lunabridge_kernel", "as --kernel", default="")
    parser.addini("lunabridge_fail_on_skip", "as --fail-on-skip", type="bool", default=False)
    parser.addini(
        "lunabridge_timeout_s",
        "seconds after which a kernel test that says nothing counts as hanging",
        default="300",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and choose where kernel tests run."""
    config.addinivalue_line(
        "markers",
        "kernel(min=None, reason=None, alone=False, sanitizer=False): needs a kernel with the"
        " module, of release min or later for that reason; alone: a lab of its own;"
        " sanitizer: the sanitizer kernel",
    )
    config.addinivalue_line(
        "markers",
        "topology(*hosts, static_neighbours=True): two to four hosts in a row, which the"
        " fixture topology builds; those in the middle are routers",
    )
    config.addinivalue_line(
        "markers", "stock_kernel(reason): means nothing on the sanitizer kernel"
    )
    config.addinivalue_line(
        "markers",
        "expects_splat(text, sanitizer=False, maybe=False): the kernel's log must show a splat"
        " with this text; sanitizer: on a kernel with sanitizers, others cannot tell; maybe:"
        " it need not come",
    )
    config.addinivalue_line(
        "markers",
        "expects_leak(text): alone in its guest, whose kernel must have lost memory that"
        " a function with this text in its name allocated",
    )
    if _runs_here(config):
        from bridge.testing.gates import Gates  # noqa: PLC0415 - only where it is used

        config.pluginmanager.register(Gates(config), "lunabridge-gates")
    else:
        from bridge.testing.remote import Remote  # noqa: PLC0415 - not in the guest

        config.pluginmanager.register(Remote(config), "lunabridge-remote")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put kernel tests last: a mistake that host tests can find is found first.

    Those that need a guest of their own come after all others, whose guests stay up.
    """

    def rank(item: pytest.Item) -> int:
        marker = item.get_closest_marker("kernel")
        return 0 if marker is None else 2 if marker.kwargs.get("alone") else 1

    items.sort(key=rank)


# Debian 12's pytest 7.2 knows no wrapper=True.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    """Turn a skip into a failure where that was asked for, and remember failures."""
    outcome = yield
    artefacts.note(item, fail_on_skip(item.config, outcome.get_result()))


def fail_on_skip(config: pytest.Config, report: pytest.TestReport) -> pytest.TestReport:
    """Return the report, as a failure if it is a skip and those are not allowed."""
    wanted = config.getoption("--fail-on-skip") or config.getini("lunabridge_fail_on_skip")
    if wanted and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and skips are not allowed: {report.longrepr}"
    return report


def _runs_here(config: pytest.Config) -> bool:
    if config.getoption("--native") and config.getoption("--kernel"):
        raise pytest.UsageError("--kernel chooses the lab's kernel, --native uses no lab")
    native = config.getoption("--native") or config.getini("lunabridge_native")
    if native and os.geteuid() != 0:
        raise pytest.UsageError(
            "--native loads a kernel module, as root: be root, or leave it out"
        )
    return bool(native or os.environ.get(IN_LAB))
