"""Files that a failed test leaves to its author.

They are made where the test ran. What the lab made is fetched before it ends, so that
the path in the report is one of the machine that pytest was started on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from bridge.errors import BridgeError

_FAILED = pytest.StashKey[bool]()
_PREFIX = "lunabridge_"


def note(item: pytest.Item, report: pytest.TestReport) -> None:
    """Remember whether the test itself has failed."""
    if report.when == "call":
        item.stash[_FAILED] = report.failed


def has_failed(item: pytest.Item) -> bool:
    """Return whether the test itself has failed; asked by what its fixtures take down."""
    return item.stash.get(_FAILED, False)


def keep(item: pytest.Item, what: str, path: Path) -> None:
    """Tell of a file, in the test's report and in its properties (JUnit)."""
    item.user_properties.append((f"{_PREFIX}{what}", str(path)))
    item.add_report_section("teardown", "artefacts", f"{what}: {path}\n")


def fetch(
    report: dict[str, Any], get: Callable[[str], bytes], directory: Callable[[str], Path]
) -> None:
    """Bring the files that a serialised report tells of to this machine.

    ``get`` returns the content of one of the guest's, ``directory`` a new directory for a
    test of that name. A file that cannot be had stays a path of the guest's.
    """
    if report["when"] != "teardown":
        return
    found = [pair for pair in report["user_properties"] if str(pair[0]).startswith(_PREFIX)]
    for pair in found:
        with suppress(BridgeError):
            content = get(pair[1])
            name = re.sub(r"\W", "_", report["nodeid"].rpartition("::")[2])[:30]
            here = directory(name) / PurePosixPath(pair[1]).name
            here.write_bytes(content)
            report["sections"] = [
                [title, text.replace(pair[1], str(here))] for title, text in report["sections"]
            ]
            pair[1] = str(here)
