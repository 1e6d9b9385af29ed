"""The module builds without a warning, for every kernel it supports."""

from __future__ import annotations

import pytest

from bridge import module
from bridge.lab import image, recipe


@pytest.fixture(scope="session", params=recipe.available())
def kernel(request):
    return module.Kernel.of_image(image.ensure(recipe.load(request.param)))


def test_neither_the_compiler_nor_sparse_warns(kernel):
    assert module.warnings(kernel) == []


def test_a_planted_mistake_is_reported(kernel, monkeypatch):
    copy = module._copy_sources

    def copy_and_plant(target, directory):
        copy(target, directory)
        with (directory / "kmod/main.c").open("a") as file:
            file.write("\nstatic int unused_by_anybody;\n")
            file.write("\nint not_static(void) { return 0; }\n")

    monkeypatch.setattr(module, "_copy_sources", copy_and_plant)
    found = "\n".join(module.warnings(kernel))
    assert "unused_by_anybody" in found
    assert "symbol 'not_static' was not declared" in found


def test_lua_of_another_checksum_is_refused(kernel, tmp_path, capfd):
    from dataclasses import replace

    from bridge.errors import ModuleError

    forged = tmp_path / kernel.lua_tarball.name
    forged.write_bytes(kernel.lua_tarball.read_bytes() + b"x")
    with pytest.raises(ModuleError, match="building the module failed"):
        module.warnings(replace(kernel, lua_tarball=forged))
    assert "its SHA-256 is not one of those" in capfd.readouterr().err
