"""docs/kernel-module.md lists the module's parameters as modinfo and sysfs have them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bridge.lunatik import GUEST_MODULE, Lunatik
from bridge.module import PROJECT

pytestmark = pytest.mark.kernel

PAGE = PROJECT / "docs" / "kernel-module.md"
LOADED = Path("/sys/module/lunatik/parameters")


def documented() -> dict[str, tuple[str, str]]:
    """Default and mode of each parameter; no default for what can only be read."""
    rows = re.findall(r"^\| `(\w+)` \| (\S*) ?\| (0[0-7]{3}) \|", PAGE.read_text(), re.M)
    return {name: (default, mode) for name, default, mode in rows}


def described() -> dict[str, str]:
    """What modinfo says of each parameter, without its type."""
    listed = subprocess.run(
        ["modinfo", "-F", "parm", GUEST_MODULE], capture_output=True, text=True, check=True
    ).stdout
    return dict(re.findall(r"^(\w+):(.*?)(?: \(\w+\))?$", listed, re.M))


def test_the_parameters_are_those_of_modinfo():
    assert list(documented()) == sorted(described())


def test_the_defaults_are_those_that_modinfo_tells():
    for name, (default, mode) in documented().items():
        if not default:
            assert mode == "0444", name
            continue
        told = described()[name].replace(",", "")
        told = re.sub(r"(\d+) MiB", lambda mib: str(int(mib[1]) << 20), told)
        assert f"default {default}" in told, name


def test_defaults_and_modes_are_those_of_the_loaded_module():
    with Lunatik.load():
        for name, (default, mode) in documented().items():
            file = LOADED / name
            assert f"{file.stat().st_mode & 0o777:04o}" == mode, name
            if default and name != "root":  # which the client always gives
                assert file.read_text().strip() == default, name
