"""Which kernel a run is on is chosen by option or ini, and the run says it."""

from __future__ import annotations

from pathlib import Path

import pytest

import bridge
from bridge.lab.kernels import KERNELS
from bridge.testing.leftout import LeftOut


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    # The inner pytest starts elsewhere, and is to load this tree's plugin.
    monkeypatch.setenv("PYTHONPATH", str(Path(bridge.__file__).parents[1]))
    monkeypatch.delenv("LUNABRIDGE_IN_LAB", raising=False)
    pytester.makepyfile("def test_on_the_host(): pass")

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)

    return run


def _header(kernel: str) -> str:
    return f"lunabridge: kernel tests run in the lab, kernel {kernel}"


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_header_names_the_chosen_kernel(run, kernel):
    run("--kernel", kernel).stdout.fnmatch_lines([_header(kernel)])


def test_the_default_is_the_newest(run):
    run().stdout.fnmatch_lines([_header("6.12")])


def test_the_option_wins_over_the_ini_file(run, pytester):
    pytester.makeini("[pytest]\nlunabridge_kernel = 6.1\n")
    run().stdout.fnmatch_lines([_header("6.1")])
    run("--kernel", "6.12").stdout.fnmatch_lines([_header("6.12")])


def test_an_unknown_kernel_is_refused_with_what_there_is(run):
    result = run("--kernel", "2.4")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no lab with the kernel '2.4'*", "*6.12, 6.1*"])


def test_a_kernel_of_the_lab_and_no_lab_exclude_each_other(run):
    result = run("--kernel", "6.1", "--native")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_native_use_without_root_is_refused(pytester, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(pytest.UsageError, match="--native loads a kernel module, as root"):
        pytester.parseconfigure("--native")


CASES = """
import pytest

def test_on_the_host(): pass

@pytest.mark.kernel(sanitizer=True)
def test_that_only_the_sanitizer_kernel_can_run(): pass

@pytest.mark.kernel
@pytest.mark.stock_kernel("it counts instructions")
def test_that_means_nothing_there(): pass
"""


def test_what_only_the_sanitizer_kernel_can_run_is_left_out_elsewhere_and_counted(
    run, pytester
):
    pytester.makepyfile(CASES)
    result = run("-k", "not nothing", "--kernel=6.12")
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.fnmatch_lines(["left out: 1 tests, for the sanitizer kernel*"])


def test_what_means_nothing_on_the_sanitizer_kernel_is_left_out_with_its_reason(run, pytester):
    pytester.makepyfile(CASES)
    result = run("-k", "not only", "--kernel=sanitizer")
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.fnmatch_lines(["left out: 1 tests, not for the*: it counts instructions"])


NEEDS_A_NEWER_KERNEL = """
import pytest

def test_on_the_host(): pass

@pytest.mark.kernel(min="6.2"{reason})
def test_of_what_came_later(): pass
"""


def test_what_an_old_kernel_lacks_is_left_out_and_no_skip(run, pytester):
    pytester.makepyfile(NEEDS_A_NEWER_KERNEL.format(reason=', reason="of netfilter"'))
    result = run("--kernel=6.1", "--fail-on-skip")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(
        ["left out: 1 tests, not for Linux 6.1, older than 6.2: of netfilter"]
    )


def test_what_no_kernel_of_the_lab_has_is_not_left_out_of_the_newest():
    left_out = LeftOut("6.12", sanitizer=False)
    assert left_out._too_old("x", min="6.13", reason="r") is None
    assert LeftOut("6.1.9", sanitizer=False)._too_old("x", min="6.13", reason="r")


def test_a_minimum_without_a_reason_is_refused(run, pytester):
    pytester.makepyfile(NEEDS_A_NEWER_KERNEL.format(reason=""))
    result = run("--kernel=6.12")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_of_what_came_later: kernel(min=...) needs a reason*"])


def test_the_header_says_how_many_guests_share_the_tests(run):
    run("--guests=3").stdout.fnmatch_lines([_header("6.12") + ", in 3 guests"])


def test_no_guests_is_refused(run):
    result = run("--guests=0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--guests: at least 1*"])


def test_the_host_imports_nothing_slow_for_the_plugin(run, pytester):
    pytester.makepyfile(
        """
        import sys

        def test_first(): pass

        def test_imports():
            assert "bridge.testing.fixtures" in sys.modules
            slow = {"bcc", "bridge.lunatik", "netns", "pyroute2", "qemu", "rich", "scapy"}
            assert not slow & set(sys.modules)
        """
    )
    run().assert_outcomes(passed=2)
