"""What was being tried when the guest died is in the report of the test."""

from __future__ import annotations

import pytest

from bridge.lab.image import cache_dir

# Asked for before pytester moves the home directory.
CACHE_HOME = str(cache_dir().parent)

CASES = """
import time
from pathlib import Path

import pytest


def tell(what):
    from bridge.fuzz.journal import Journal

    Journal().begin(what)


@pytest.mark.kernel
def test_that_crashes():
    tell("fuzz --seed 11")
    Path("/proc/sysrq-trigger").write_text("c")


@pytest.mark.kernel
def test_that_hangs():
    tell("fuzz --seed 12")
    time.sleep(1000)
"""


def test_a_crash_and_a_hang_are_reported_with_their_seed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    from bridge.module import PROJECT

    # The inner pytest has another home, and would build an image of its own there.
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE_HOME)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    # The guest knows the project's tree alone, so the cases go there for a moment.
    cases = PROJECT / "tests" / "fuzz" / "test_zz_journal_cases.py"
    cases.write_text(CASES)
    try:
        result = pytester.runpytest_subprocess(
            str(cases), "-c", str(PROJECT / "pyproject.toml"), f"--rootdir={PROJECT}",
            "-p", "no:cacheprovider", "-o", "lunabridge_timeout_s=15", timeout=300,
        )  # fmt: skip
    finally:
        cases.unlink()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*the guest crashed*",
            "*lunabridge: fuzz: fuzz --seed 11*",
            "*the guest said nothing for 15 s*",
            "*lunabridge: fuzz: fuzz --seed 12*",
        ]
    )
