"""Kernel tests run from the host: results come back, a dead guest fails one test."""

from __future__ import annotations

import pytest

CASES = """
import os
from pathlib import Path

import pytest


def test_on_the_host():
    assert "LUNABRIDGE_IN_LAB" not in os.environ


@pytest.mark.kernel
def test_in_the_guest():
    print("said in the guest")
    assert os.environ["LUNABRIDGE_IN_LAB"]


@pytest.mark.kernel
def test_that_fails():
    number = 7
    assert number == 8


@pytest.mark.kernel
def test_that_is_skipped():
    pytest.skip("for a reason")


@pytest.mark.kernel
def test_that_panics():
    Path("/proc/sysrq-trigger").write_text("c")


@pytest.mark.kernel
@pytest.mark.parametrize("text", ["a b", "[x]"])
def test_after_the_panic(text):
    assert text
"""


def test_reports_come_back_and_a_panic_fails_one_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    from bridge.lab.image import cache_dir
    from bridge.module import PROJECT

    # The inner pytest has another home, and would build an image of its own there.
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir().parent))
    # The guest knows the project's tree alone, so the cases go there for a moment.
    cases = PROJECT / "tests" / "plugin" / "test_zz_remote_cases.py"
    cases.write_text(CASES)
    try:
        result = pytester.runpytest_subprocess(
            str(cases), "-c", str(PROJECT / "pyproject.toml"), f"--rootdir={PROJECT}",
            "-p", "no:cacheprovider", "-rs", timeout=300,
        )  # fmt: skip
    finally:
        cases.unlink()
    result.assert_outcomes(passed=4, failed=2, skipped=1)
    result.stdout.fnmatch_lines(
        ["*assert 7 == 8*", "*the guest crashed*", "*sysrq triggered crash*", "*for a reason*"]
    )
