"""The lab runs each of the kernels it offers, and the module works in the older one."""

from __future__ import annotations

import pytest

from bridge.lab import Lab, recipe
from bridge.lab.image import cache_dir
from bridge.lab.kernels import KERNELS, options_for
from bridge.lab.progress import silent
from bridge.module import PROJECT

# Asked for before pytester moves the home directory.
CACHE_HOME = str(cache_dir().parent)

# Enough to see that the module, the client and the traffic work on a kernel at all;
# everything is tested there by `make test KERNEL=...`.
SMOKE = (
    "tests/kernel/test_runtime.py",
    "tests/kernel/test_hook.py::test_the_verdict_decides_about_the_packet",
    "tests/kernel/test_hook.py::test_a_namespace_that_goes_away_stops_its_runtimes",
)


@pytest.mark.parametrize("kernel", [recipe.load(suite).kernel for suite in recipe.available()])
def test_a_lab_of_each_recipe_runs_its_kernel_and_comes_back_restored(kernel: str) -> None:
    Lab.boot(options_for(kernel), progress=silent).close()  # saves it where it is not yet
    with Lab.boot(options_for(kernel), progress=silent) as lab:
        release = lab.run(["uname", "-r"], timeout_s=20, check=True).stdout.decode().strip()
        assert release == lab.kernel_release
        assert release.startswith(f"{kernel}.")
        assert lab.facts.restored or lab.acceleration == "kvm"


def test_every_kernel_has_a_recipe() -> None:
    assert {options.suite for options in KERNELS.values()} <= set(recipe.available())


def test_the_module_works_on_the_oldest_kernel(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The inner pytest starts elsewhere: it is to use this tree, and the images there are.
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE_HOME)
    result = pytester.runpytest_subprocess(
        *(str(PROJECT / test) for test in SMOKE), "-c", str(PROJECT / "pyproject.toml"),
        f"--rootdir={PROJECT}", "-p", "no:cacheprovider", "--kernel=6.1", "--fail-on-skip",
        timeout=300,
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.OK
    assert set(result.parseoutcomes()) == {"passed"}
