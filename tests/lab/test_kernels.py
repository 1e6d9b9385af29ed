"""The lab runs each of the kernels it offers, restored from a saved guest too."""

from __future__ import annotations

import pytest

from bridge.lab import Lab, recipe
from bridge.lab.kernels import KERNELS, options_for
from bridge.lab.progress import silent


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
