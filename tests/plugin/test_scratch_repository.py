"""A policy's author installs the wheel and runs pytest in a repository of their own."""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.parts import PROJECT

Run = Callable[..., pytest.LineMatcher]

PAGE = (PROJECT / "docs" / "testing.md").read_text()

POLICY = """
local nf = require "netfilter"
nf.register{
  pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = nf.ip_priority.FILTER,
  hook = function(skb)
    if skb:dport() == 53 then return nf.action.DROP end
    return nf.action.ACCEPT
  end,
}
"""

# As short as a first test is.
TEST_POLICY = """
import pytest
from bridge.traffic import dns_question

pytestmark = pytest.mark.kernel

@pytest.mark.parametrize("name", ["a.example", "b.example"])
def test_dns_is_dropped(policy, send, expect, name):
    print("asking for", name)
    policy("policy.lua")
    expect(send(dns_question(name))).dropped()

def test_another_port_is_dropped(policy, send, expect, question):
    policy("policy.lua")
    expect(send(question)).dropped()
"""

CONFTEST = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--port", type=int, default=53)

@pytest.fixture
def question(request):
    from bridge.traffic import dns_question
    print("asking at port", request.config.getoption("--port"))
    return dns_question("example.com", dport=request.config.getoption("--port"))
"""


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Run pytest as the author does; return what it prints, after a look at its status."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYT")}
    kept.pop("LUNABRIDGE_IN_LAB", None)
    kept |= {"COLUMNS": "200"}

    def run(*arguments: str, status: int = 1, directory: str = ".") -> pytest.LineMatcher:
        done = subprocess.run(
            [installed, "-m", "pytest", *arguments],
            cwd=tmp_path / directory, env=kept, text=True, check=False,
            capture_output=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return pytest.LineMatcher((done.stdout + done.stderr).splitlines())

    return run


def test_a_newcomers_first_run_says_what_is_wrong_in_its_first_line(run: Run, tmp_path: Path):
    _write(
        tmp_path,
        {
            "pytest.ini": "[pytest]",
            "policy.lua": POLICY,
            "tests/test_policy.py": TEST_POLICY,
            "conftest.py": CONFTEST,
        },
    )
    assert not tmp_path.resolve().is_relative_to(PROJECT)
    printed = run("--port=5454", "-rfP", "--durations=1", "--junitxml=results.xml")
    printed.fnmatch_lines(
        [
            "lunabridge: kernel tests run in the lab, kernel 6.12",
            "rootdir: */test_a_newcomers*",
            "tests/test_policy.py ..F*",
            ">       expect(send(question)).dropped()",
            "E       AssertionError: expected dropped, but saw accepted: IP / UDP *:5454*",
            "E              expected  seen",
            "E       >   1  dropped   accepted: IP / UDP *:5454*",
            "E         policy.lua at FORWARD of router: 2 packets (2 accepted)",
            "tests/test_policy.py:14: AssertionError",
            "*Captured stdout setup*",
            "asking at port 5454",
            "*Captured artefacts teardown*",
            "packets: /*/links.pcapng",
            "*PASSES*",
            "*Captured stdout call*",
            "asking for a.example",
            "*slowest*durations*",
            "*s * tests/test_policy.py::test_*",
            "FAILED tests/test_policy.py::test_another_port_is_dropped - AssertionError: "
            "expected dropped, but saw accepted: *",
            "*1 failed, 2 passed in *",
        ]
    )
    [line] = [line for line in printed.lines if line.startswith("packets: ")]
    capture = Path(line.removeprefix("packets: ")).read_bytes()
    assert b"router:eth0" in capture
    assert b"#1 accepted" in capture
    suite = ET.parse(tmp_path / "results.xml").getroot()[0]
    [name] = [one.get("value") for one in suite.iter("property")]
    assert f"packets: {name}" == line
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    assert [case.get("name") for case in suite] == [
        "test_dns_is_dropped[a.example]", "test_dns_is_dropped[b.example]",
        "test_another_port_is_dropped",
    ]  # fmt: skip

    run("--lf", "-s", "tests", "--port=53", status=0).fnmatch_lines(
        ["*asking at port 53", "*1 passed*"]
    )
    run("-k", "b.example", "test_policy.py", status=0, directory="tests").fnmatch_lines(
        ["*1 passed, 2 deselected*"]
    )


LOOP = "local n = 0 while true do n = n + 1 end"
MISTAKES = {
    "broken.lua": "local = 1",
    "failing.lua": POLICY.replace("skb:dport()", "skb:nonsense()"),
    "endless.lua": POLICY.replace("return nf.action.ACCEPT", LOOP),
    "idle.lua": "local nf = require 'netfilter'",
    "elsewhere.lua": POLICY.replace("FORWARD", "LOCAL_IN"),
    "policy.lua": POLICY,
}

TEST_MISTAKES = """
import pytest
from bridge.traffic import dns_question

pytestmark = pytest.mark.kernel

@pytest.mark.parametrize("script", [
    "broken.lua", "failing.lua", "endless.lua", "idle.lua", "elsewhere.lua", "missing.lua",
])
def test_mistake(policy, send, expect, script):
    policy(script)
    expect(send(dns_question("example.com", dport=54))).dropped()

def test_without_a_policy(send, expect):
    expect(send(dns_question("example.com"))).dropped()

def test_policies_of_the_bridge_and_of_a_text(policy, send, expect):
    policy("dns_block").resume("block", "bad.example")
    sent = send([dns_question("bad.example"), dns_question("good.example")])
    expect(sent).verdicts("dropped", "accepted")
    text = open("elsewhere.lua").read()
    assert policy("text", source=text, host="server").info().name == "text"
    expect(send(dns_question("good.example"), observe="socket")).dropped()

def test_counts(policy, send, expect):
    policy("policy.lua")
    questions = [dns_question("example.com", dport=port) for port in (53, 54, 54)]
    expect(send(questions)).verdicts("dropped", "accepted", "accepted")
    expect(send(questions)).accepted(within=1)
    expect(send(questions)).counts(dropped=2, accepted=1)

@pytest.mark.topology("left", "right")
def test_the_hosts_are_those_of_the_marker(policy, topology, send, expect):
    assert [host.name for host in topology] == ["left", "right"]
    policy("elsewhere.lua")
    expect(send(dns_question("example.com"), observe="socket")).dropped()
    expect(send.ping()).completed()
    expect(send.udp(port=53)).ended("unanswered")
    expect(send.tcp(port=54)).ended("refused")
"""

CAUSES = [
    "bridge.errors.LuaError: broken.lua:1: <name> expected near '='",
    "AssertionError: failing.lua:*nonsense*(onerror: *): expected dropped, but saw *",
    "AssertionError: endless.lua:*instruction budget exceeded*: expected dropped, but saw *",
    "bridge.errors.PolicyError: idle.lua registers no hook, so it meets no packet",
    "AssertionError: no hook of a policy met these packets: expected dropped, but saw acc*",
    "bridge.errors.UsageError: no file missing.lua in /repository, of the files that git *",
    "AssertionError: no policy is in force: expected dropped, but saw accepted: *",
    "AssertionError: expected 1 accepted, 2 dropped, but saw 2 accepted, 1 dropped",
    "AssertionError: expected refused, but saw completed",
]


def test_each_mistake_is_named_in_the_first_line_of_its_failure(run: Run, tmp_path: Path):
    _write(tmp_path, {**MISTAKES, "test_mistakes.py": TEST_MISTAKES})
    printed = run("-rN")
    starts = [
        line
        for before, line in zip(printed.lines, printed.lines[1:], strict=False)
        if line.startswith("E  ") and not before.startswith("E")
    ]
    assert len(starts) == len(CAUSES)
    for start, cause in zip(starts, CAUSES, strict=True):
        pytest.LineMatcher([start]).fnmatch_lines([f"E *{cause}"])
    assert not [line for line in printed.lines if "/bridge/" in line]


def test_what_the_lab_cannot_load_fails_its_tests_with_the_cause(run: Run, tmp_path: Path):
    tests = "import hatchling, pytest\npytestmark = pytest.mark.kernel\n" + "".join(
        f"def test_{number}(): pass\n" for number in range(3)
    )
    _write(tmp_path, {"test_more.py": tests})
    run().fnmatch_lines(
        [
            "test_more.py cannot be loaded in the lab: ModuleNotFoundError: *hatchling*",
            "The lab has Python's standard library, *",
            "FAILED test_more.py::test_2 - Failed: test_more.py cannot be loaded in the lab: *",
            "*3 failed*",
        ]
    )


def _block(start: str) -> str:
    found = re.search(rf"^```{start}(.*?)^```", PAGE, re.M | re.S)
    assert found, f"the page has no block {start}"
    return found[1]


def test_the_page_about_testing_shows_what_happens(run: Run, tmp_path: Path):
    policy = _block("lua forwarding\n")
    _write(tmp_path, {"policy.lua": policy, "test_policy.py": _block("python\n")})
    run(status=0).fnmatch_lines(["*2 passed*"])
    _write(tmp_path, {"policy.lua": policy.replace("== 53", "== 54")})
    printed = run()
    printed.fnmatch_lines(["*1 failed, 1 passed*"])
    for line in _block("\n(?=>)").splitlines():
        assert line in printed.lines
