"""Kernel tests run from the host: guests share them, a dead guest fails one test."""

from __future__ import annotations

import pytest

from bridge.lab.image import cache_dir
from bridge.module import PROJECT

# Asked for before pytester moves the home directory.
CACHE_HOME = str(cache_dir().parent)

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
def test_that_leaves_a_file():
    Path("/tmp/left").touch()


@pytest.mark.kernel(alone=True)
def test_in_a_guest_of_its_own():
    assert not Path("/tmp/left").exists()


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

MORE = """
import pytest


@pytest.mark.kernel
def test_in_the_other_guest():
    pass


@pytest.mark.kernel(alone=True)
@pytest.mark.expects_leak("a_function")
def test_that_loses_nothing():
    pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    # The inner pytest has another home, and would build an image of its own there. It
    # starts elsewhere, and is to load this tree's plugin.
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE_HOME)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(
            "-p", "no:cacheprovider", "-rs", *arguments, timeout=300
        )

    return run


def test_reports_come_back_and_a_panic_fails_one_test(pytester: pytest.Pytester, run):
    pytester.makepyfile(test_cases=CASES, test_more=MORE)
    result = run("--guests=2")
    result.assert_outcomes(passed=8, failed=2, skipped=1, errors=1)
    for line in (
        "*assert 7 == 8*", "*the guest crashed*", "*sysrq triggered crash*", "*for a reason*",
        "*ERROR at teardown of test_that_loses_nothing*", "no lost memory names a_function",
    ):  # fmt: skip
        result.stdout.fnmatch_lines([line])


@pytest.mark.parametrize(
    ("expected", "reports", "troubles"),
    [
        (None, [], []),
        (None, ["object 1 ... f+0x2"], ["lost since the guest began:\nobject 1 ... f+0x2"]),
        ("f", ["object 1 ... f+0x2"], []),
        ("g", ["object 1 ... f+0x2"], ["no lost memory names g"]),
    ],
)
def test_what_a_guest_lost_fails_the_last_test_that_ran_there(
    pytester, monkeypatch, expected, reports, troubles
):
    from bridge.testing.remote import Group

    monkeypatch.delenv("LUNABRIDGE_IN_LAB", raising=False)
    remote = pytester.parseconfigure().pluginmanager.get_plugin("lunabridge-remote")
    remote._lossy = {"last": expected} if expected else {}
    remote._judge_leaks(0, Group(["first", "last"]), reports)
    outcome = remote._outcomes["last"]
    assert [(trouble.text, trouble.when) for trouble in outcome.reports] == [
        (text, "teardown") for text in troubles
    ]
    assert outcome.over


def test_a_group_is_a_file_or_a_test_that_needs_a_guest_of_its_own(pytester):
    from bridge.testing.remote import Group, _groups

    items = pytester.getitems(
        """
        import pytest

        @pytest.mark.kernel
        def test_1(): pass

        @pytest.mark.kernel(alone=True)
        @pytest.mark.parametrize("number", [2, 3])
        def test_alone(number): pass

        @pytest.mark.kernel
        def test_4(): pass

        @pytest.mark.kernel
        def test_5(): pass
        """
    )
    names = [item.nodeid for item in items]
    assert _groups(items) == [
        Group(names[:1]),
        Group(names[1:2], alone=True),
        Group(names[2:3], alone=True),
        Group(names[3:]),
    ]
