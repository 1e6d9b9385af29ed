"""The module builds without a warning, for every kernel it supports."""

from __future__ import annotations

import os

import pytest

from bridge import kmodcheck, module
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


def test_every_allocation_can_be_made_to_fail():
    assert kmodcheck.untested_allocations(module.SOURCES) == []


def test_an_allocation_that_cannot_be_made_to_fail_is_reported(tmp_path):
    (tmp_path / "planted.c").write_text(
        "/*\n * kmalloc() in a comment\n */\n"
        "a = lunatik_kmalloc(1, gfp);\n"
        "b = lunatik_memory_fails() ? NULL :\n\tkvasprintf(gfp, fmt, args);\n"
        "c = kzalloc(sizeof(*c), gfp);\n"
    )
    (problem,) = kmodcheck.untested_allocations(tmp_path)
    assert problem.startswith("planted.c:7: kzalloc()")


def test_lua_of_another_checksum_is_refused(kernel, tmp_path, capfd):
    from dataclasses import replace

    from bridge.errors import ModuleError

    forged = tmp_path / kernel.lua_tarball.name
    forged.write_bytes(kernel.lua_tarball.read_bytes() + b"x")
    with pytest.raises(ModuleError, match="building the module failed"):
        module.warnings(replace(kernel, lua_tarball=forged))
    assert "its SHA-256 is not one of those" in capfd.readouterr().err


def test_what_killed_builds_left_is_found_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copies = image.cache_dir() / "image-trixie-0" / "sysroot" / "tmp"
    partial = image.cache_dir() / "partial-module-6.12-0"
    dead, alive = copies / "build-999999999", copies / f"build-{os.getpid()}"
    for directory in (partial, dead, alive):
        directory.mkdir(parents=True)
        (directory / "file").touch()
    assert module.clean_leftovers() == [str(dead), str(partial)]
    assert not dead.exists()
    assert not partial.exists()
    assert alive.exists()
    assert module.clean_leftovers() == []
