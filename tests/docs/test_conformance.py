"""docs/conformance.md: each row has tests, each of them exists and runs in a kernel.

So do the tests that the other pages in docs/ link.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from bridge.module import PROJECT

PAGE = PROJECT / "docs" / "conformance.md"
ROW = re.compile(r"^\| ([A-Z]+\d+) \| (.+?) \| (.+?) \| (.*) \|$")
LINK = re.compile(r"\[([\w:]+)\]\(([^)]+)\)")
HEADER = "| id | place | what is promised | tests |"
SECTIONS = [
    "The module",
    "lunatik._ENV",
    "lunatik.runtime",
    "Class runtime",
    "runtime:resume",
    "runtime:stop",
]


@dataclass(frozen=True)
class Row:
    id: str
    tests: tuple[str, ...]


def rows(text: str) -> Iterator[Row]:
    """The table rows of the page; raises ValueError for one that cannot be read."""
    for line in text.splitlines():
        if not line.startswith("|") or line == HEADER or set(line) <= {"|", "-"}:
            continue
        found = ROW.match(line)
        if not found:
            raise ValueError(f"no row of this table: {line}")
        links = LINK.findall(found[4])
        if LINK.sub("", found[4]).strip(" ,"):
            raise ValueError(f"{found[1]}: text among the links: {line}")
        yield Row(found[1], tuple(f"{_place(path)}::{name}" for name, path in links))


def _place(path: str) -> str:
    return str((PAGE.parent / path).resolve().relative_to(PROJECT))


def problems(table: Iterable[Row], collected: set[str], kernel: set[str]) -> list[str]:
    """What is wrong with the rows, given the tests that exist and those run in a kernel."""
    table = list(table)
    found = [f"{id_} twice" for id_, n in Counter(row.id for row in table).items() if n > 1]
    for row in table:
        if not row.tests:
            found.append(f"{row.id} has no test")
        for test in row.tests:
            if test not in collected:
                found.append(f"{row.id}: {test} does not exist")
            elif test not in kernel:
                found.append(f"{row.id}: {test} does not run in a kernel")
    return found


def collect(paths: Iterable[str], *options: str) -> set[str]:
    """The tests pytest collects from the files, without their parameters."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *options, *paths],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("[")[0] for line in done.stdout.splitlines() if "::" in line}


def test_every_row_has_tests_that_exist_and_run_in_a_kernel():
    table = list(rows(PAGE.read_text()))
    assert len(table) > 40
    paths = sorted({test.split("::")[0] for row in table for test in row.tests})
    assert all((PROJECT / path).is_file() for path in paths), paths
    assert problems(table, collect(paths), collect(paths, "-m", "kernel")) == []


@pytest.mark.parametrize("page", ["lua-api.md", "kernel-module.md"])
def test_every_test_that_another_page_links_exists_and_runs_in_a_kernel(page):
    links = LINK.findall((PAGE.parent / page).read_text())
    tests = [f"{_place(path)}::{name}" for name, path in links if "/tests/" in path]
    assert len(tests) > 10
    paths = sorted({test.split("::")[0] for test in tests})
    table = [Row(test, (test,)) for test in sorted(set(tests))]
    assert problems(table, collect(paths), collect(paths, "-m", "kernel")) == []


def test_every_part_of_the_reference_page_has_rows():
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.M)
    assert parts[1::2] == SECTIONS
    for part in parts[2::2]:
        assert list(rows(part))


GOOD = Row("A1", ("tests/x.py::test_a",))


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (Row("A1", ("tests/x.py::test_a",)), "A1 twice"),
        (Row("A2", ()), "A2 has no test"),
        (Row("A3", ("tests/x.py::test_none",)), "A3: tests/x.py::test_none does not exist"),
        (Row("A4", ("tests/x.py::test_b",)), "A4: tests/x.py::test_b does not run in a kernel"),
    ],
)
def test_a_bad_row_is_found(bad, problem):
    collected = {"tests/x.py::test_a", "tests/x.py::test_b"}
    assert problems([GOOD, bad], collected, {"tests/x.py::test_a"}) == [problem]
    assert problems([GOOD], collected, {"tests/x.py::test_a"}) == []


@pytest.mark.parametrize(
    "line",
    [
        "| A1 | place | promise |",
        "| a row | place | promise | [test_a](../tests/kernel/test_script.py) |",
        "| A1 | place | promise | trust me, [test_a](../tests/kernel/test_script.py) |",
    ],
)
def test_a_row_that_cannot_be_read_is_an_error(line):
    with pytest.raises(ValueError, match=r"no row|text among the links"):
        list(rows(line))


def test_a_row_is_read():
    line = "| A1 | place | promise | [test_a](../tests/kernel/test_script.py) |"
    assert list(rows(line)) == [Row("A1", ("tests/kernel/test_script.py::test_a",))]


def test_collecting_fails_where_a_file_cannot_be_collected():
    with pytest.raises(AssertionError):
        collect(["tests/kernel/none.py"])
