"""The wheel carries all that the bridge needs at run time, and finds it where it lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bridge import module
from bridge.lab import recipe
from bridge.parts import PROJECT


def _content(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_wheel_has_the_modules_sources_and_the_lua_libraries_byte_for_byte(wheel):
    content = _content(wheel)
    carried = {name: path for name, path in module._source_files().items() if "sab" not in name}
    carried |= {f"lua/{path.name}": path for path in module.LUA_ROOT.glob("*.lua")}
    assert {"kmod/Kbuild", "kmod/port/luaconf.h", "lua/dns_block.lua"} <= set(carried)
    for name, path in carried.items():
        assert content[f"bridge/_data/{name}"] == path.read_bytes(), name


def test_the_wheel_has_recipes_and_the_guests_agent(wheel):
    content = _content(wheel)
    for suite in recipe.available():
        assert f"bridge/lab/recipes/{suite}.toml" in content
    assert {"bridge/lab/guest/boot.sh", "bridge/lab/guest/init.py"} <= set(content)
    assert {"bridge/tracer/program.c", "netns/topology.py"} <= set(content)


def test_the_wheel_has_no_tests_and_no_build_products(wheel):
    names = set(_content(wheel))
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bridge", "netns"}
    assert not [name for name in names if "sabotage" in name or "__pycache__" in name]
    assert not [name for name in names if name.endswith((".o", ".ko", ".pyc"))]


LOOK = """
import json
from bridge import lunatik, module, policyfile
from bridge.lab import recipe, tree
json.dump({
    "sources": {name: str(path) for name, path in module._source_files().items()},
    "fingerprint": module._fingerprint(module.Kernel("/", "6.12", "/lua.tar")),
    "lua": [str(module.LUA_ROOT), str(lunatik.LUA_ROOT)],
    "policy": policyfile.load("dns_block").name,
    "recipes": recipe.available(),
    "guest": sorted(tree.scan(tree.project_root())),
}, __import__("sys").stdout)
"""


@pytest.fixture(scope="session")
def seen(wheel, tmp_path_factory):
    """What the bridge sees of itself where its wheel is installed."""
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    (target / "other").mkdir()
    (target / "other" / "package.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=target.parent, env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return target, json.loads(done.stdout)


def test_an_installed_bridge_finds_what_it_carries(seen):
    target, found = seen
    carried = target / "bridge" / "_data"
    assert found["lua"] == [str(carried / "lua")] * 2
    assert found["policy"] == "dns_block"
    assert found["recipes"] == recipe.available()
    assert set(found["sources"]) == {n for n in module._source_files() if n[:5] == "kmod/"}
    assert all(path == str(carried / name) for name, path in found["sources"].items())


def test_an_installed_bridge_builds_the_module_of_its_own_sources(seen, monkeypatch, tmp_path):
    _, found = seen
    kernel = module.Kernel("/", "6.12", "/lua.tar")
    assert found["fingerprint"] != module._fingerprint(kernel)  # which has the sabotage module
    monkeypatch.setattr(module, "SABOTAGE", tmp_path)
    assert found["fingerprint"] == module._fingerprint(kernel)


def test_the_guest_gets_an_installed_bridge_and_no_other_package(seen):
    _, found = seen
    assert {"bridge/_data/lua/dns_block.lua", "netns/plan.py"} <= set(found["guest"])
    assert {path.partition("/")[0] for path in found["guest"]} == {"bridge", "netns"}


def test_an_editable_installation_uses_the_tree(tmp_path):
    code = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, check=True)
    [built] = tmp_path.glob("*.whl")
    content = _content(built)
    assert not [name for name in content if name.startswith(("bridge/", "netns/"))]
    [path_file] = [name for name in content if name.endswith(".pth")]
    assert content[path_file].decode().split() == [str(PROJECT)]
