"""What a failed test leaves in the lab is brought to where pytest was started."""

from __future__ import annotations

from pathlib import Path

from bridge.errors import LabError
from bridge.testing import artefacts

THERE = "/tmp/pytest/test_x0/links.pcapng"


def _report(when: str = "teardown") -> dict:
    return {
        "nodeid": "test_a.py::test_x[a/b]",
        "when": when,
        "user_properties": [["mine", THERE], ["lunabridge_packets", THERE]],
        "sections": [["Captured artefacts teardown", f"packets: {THERE}\n"]],
    }


def test_a_file_of_the_guests_becomes_one_of_the_hosts(tmp_path: Path):
    report, asked = _report(), []

    def directory(name: str) -> Path:
        asked.append(name)
        return tmp_path

    artefacts.fetch(report, lambda path: path.encode(), directory)
    here = tmp_path / "links.pcapng"
    assert here.read_bytes() == THERE.encode()
    assert report["user_properties"] == [["mine", THERE], ["lunabridge_packets", str(here)]]
    assert report["sections"][0][1] == f"packets: {here}\n"
    assert asked == ["test_x_a_b_"]


def test_files_are_fetched_once_all_are_there(tmp_path: Path):
    report = _report("call")
    artefacts.fetch(report, lambda path: path.encode(), lambda name: tmp_path)
    assert report == _report("call")


def test_a_file_that_cannot_be_had_stays_the_guests(tmp_path: Path):
    def get(path: str) -> bytes:
        raise LabError("it is gone")

    report = _report()
    artefacts.fetch(report, get, lambda name: tmp_path)
    assert report == _report()


def test_only_a_failed_test_has_failed(pytester):
    pytester.makeconftest(
        """
        import pytest
        from bridge.testing import artefacts

        @pytest.fixture(autouse=True)
        def ask(request):
            yield
            print("failed" if artefacts.has_failed(request.node) else "fine")
        """
    )
    pytester.makepyfile("def test_good(): pass\ndef test_bad(): assert False")
    result = pytester.runpytest("-p", "no:cacheprovider", "-s")
    result.stdout.fnmatch_lines(["*.fine", "Ffailed"])
