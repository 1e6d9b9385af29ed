"""The gates around kernel tests fail when they should, and only then."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def _inner(pytester: pytest.Pytester, body: str, marks: str = "") -> pytest.RunResult:
    pytester.makepyfile(
        f"""
        import pytest
        from pathlib import Path

        @pytest.mark.kernel
        {marks}
        def test_inner():
            {body}
        """
    )
    arguments = ["-p", "bridge.testing.plugin", "-p", "no:cacheprovider"]
    return pytester.runpytest_subprocess(*arguments)


SPLAT = 'Path("/dev/kmsg").write_text("BUG: planted here\\n")'


@pytest.mark.expects_splat("planted here")
def test_a_splat_in_the_kernel_log_fails_the_test(pytester):
    result = _inner(pytester, SPLAT)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*kernel log: BUG: planted here*"])


@pytest.mark.expects_splat("planted here")
def test_an_expected_splat_passes(pytester):
    marks = '@pytest.mark.expects_splat("planted")'
    _inner(pytester, SPLAT, marks).assert_outcomes(passed=1)


@pytest.mark.expects_splat("planted here")
def test_a_splat_is_shown_with_the_lines_after_it(pytester):
    result = _inner(pytester, f'{SPLAT}; Path("/dev/kmsg").write_text("its stack\\n")')
    result.stdout.fnmatch_lines(["*kernel log: BUG: planted here*", "*    its stack*"])


def test_a_splat_that_may_come_need_not(pytester):
    marks = '@pytest.mark.expects_splat("planted", maybe=True)'
    _inner(pytester, "pass", marks).assert_outcomes(passed=1)


@pytest.mark.expects_splat("planted here")
def test_a_splat_that_may_come_passes(pytester):
    marks = '@pytest.mark.expects_splat("planted", maybe=True)'
    _inner(pytester, SPLAT, marks).assert_outcomes(passed=1)


def test_an_expected_splat_that_does_not_come_fails(pytester):
    result = _inner(pytester, "pass", '@pytest.mark.expects_splat("planted")')
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*expected, but did not come: planted*"])


def test_what_a_policy_prints_is_no_splat(pytester):
    body = """
            from bridge.lunatik import Lunatik
            with Lunatik.load() as lunatik:
                lunatik.runtime("loud", source="print('BUG: says the policy')")"""
    _inner(pytester, body.strip()).assert_outcomes(passed=1)


def test_a_namespace_left_behind_fails_the_test(pytester):
    import subprocess

    body = 'import subprocess; subprocess.run(["ip", "netns", "add", "lb-left"], check=True)'
    result = _inner(pytester, body)
    subprocess.run(["ip", "netns", "del", "lb-left"], check=True)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*left behind: network namespace lb-left*"])


def test_a_runtime_left_behind_fails_the_test_and_is_stopped(pytester):
    body = """
            from bridge.lunatik import Lunatik
            from bridge.netlink import Command
            lunatik = Lunatik.load()
            lunatik.request(Command.CREATE, [("LUNATIK_A_NAME", "echo")])"""
    result = _inner(pytester, body.strip())
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*left behind: runtime * (echo)*"])


def test_a_skip_is_a_failure_where_skips_are_not_allowed(pytester):
    pytester.makepyfile("import pytest\ndef test_inner(): pytest.skip('no reason')")
    arguments = ["-p", "bridge.testing.plugin", "-p", "no:cacheprovider"]
    pytester.runpytest_subprocess(*arguments).assert_outcomes(skipped=1)
    result = pytester.runpytest_subprocess(*arguments, "--fail-on-skip")
    result.assert_outcomes(failed=1)


NEEDS_A_NEWER_KERNEL = """
import pytest
from bridge.testing import leftout

leftout.DEFAULT_KERNEL = "{default}"  # so this kernel is a new one, or an old one

@pytest.mark.kernel(min="99.1", reason="for pytest")
def test_inner():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("default", "outcome", "line"),
    [
        ("3.0", "errors", "*skips are not allowed*needs Linux 99.1*"),
        (
            "99.1",
            "deselected",
            "left out: 1 tests, not for Linux *, older than 99.1: for pytest",
        ),
    ],
)
def test_what_no_kernel_can_run_is_a_skip_and_what_old_ones_cannot_is_not(
    pytester, default, outcome, line
):
    pytester.makepyfile(NEEDS_A_NEWER_KERNEL.format(default=default))
    arguments = ["-p", "bridge.testing.plugin", "-p", "no:cacheprovider", "--fail-on-skip"]
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines([line])
