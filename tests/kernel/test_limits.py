"""Budgets and limits: a looping or greedy script costs its packet, not the machine."""

from __future__ import annotations

import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from bridge.errors import LuaError
from bridge.lunatik import Lunatik

pytestmark = pytest.mark.kernel

HOSTILE = tomllib.loads(Path(__file__).with_name("hostile.toml").read_text())
ENDLESS, GREEDY, RECURSIVE = HOSTILE["endless"], HOSTILE["greedy"], HOSTILE["recursive"]
PATTERNS = HOSTILE["patterns"]


def _cases(*tables: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "source",
        [pytest.param(source, id=name) for table in tables for name, source in table.items()],
    )


@pytest.fixture(scope="module")
def small():
    """The module with a body budget that is used up soon under emulation."""
    with Lunatik.load(body_budget=1_000_000, body_time=1000) as lunatik:
        yield lunatik


@_cases(ENDLESS)
@pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])
def test_an_endless_body_ends_with_an_error(small, source, sleep):
    ends = r"instruction budget exceeded|error in error handling|not enough memory"
    with pytest.raises(LuaError, match=ends):
        small.runtime("endless", source=source, sleep=sleep)


@_cases(GREEDY)
@pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])
def test_a_greedy_body_ends_with_an_error(small, source, sleep):
    pattern = "not enough memory|too large|too many|overflow|budget exceeded|invalid conversion"
    with pytest.raises(LuaError, match=pattern):
        small.runtime("greedy", source=source, sleep=sleep)


@_cases(PATTERNS)
def test_a_body_in_an_endless_pattern_ends_with_an_error(small, source):
    looped = f"while true do pcall(function() {source} end) end"
    with pytest.raises(LuaError, match="instruction budget exceeded"):
        small.runtime("pattern", source=looped)


@_cases(PATTERNS)
def test_the_error_of_an_endless_pattern_is_its_time(small, source):
    with pytest.raises(LuaError, match=r"pattern:\d+: instruction budget exceeded"):
        small.runtime("pattern", source=source)


def test_a_body_in_an_endless_pattern_can_be_killed(small, tmp_path):
    script = tmp_path / "endless.lua"
    script.write_text(PATTERNS["backtracking"])
    create = f"""
from pathlib import Path
from bridge.lunatik import Lunatik
Lunatik.connect().runtime(Path({str(script)!r}))
"""
    with subprocess.Popen(["/usr/bin/python3", "-c", create]) as creator:
        while small.info().runtimes == 0:
            assert creator.poll() is None
        creator.kill()
        assert creator.wait(timeout=60) == -signal.SIGKILL
    assert small.info().runtimes == 0


@_cases(RECURSIVE)
def test_a_recursive_body_stops_inside_the_kernel_stack(small, source):
    try:
        small.runtime("recursive", source=source).stop()
    except LuaError as error:
        assert error.message  # noqa: PT017 - either end is right, if the kernel lives


@_cases(ENDLESS, GREEDY, PATTERNS, RECURSIVE)
def test_an_atomic_resume_is_bounded(small, source):
    runtime = small.runtime("resumed", source=f"coroutine.yield() {source}", sleep=False)
    with runtime:
        try:
            runtime.resume()
        except LuaError as error:
            assert error.message  # noqa: PT017 - either end is right, if the kernel lives


class TestCallback:
    """The same scripts in softirq, on top of the network stack."""

    @_cases(ENDLESS, GREEDY, PATTERNS)
    def test_an_endless_or_greedy_callback_costs_its_packet(
        self, small, router, traffic, source
    ):
        body = f"if skb:u8(9) ~= 1 then return 1 end {source}"
        with small.runtime(
            "hostile", source=_hook(body, "drop"), sleep=False, netns=router["router"].netns
        ) as runtime:
            assert traffic.ping("client", "server").received == 0
            info = runtime.info()
            assert info.errors == info.calls == 1
            assert info.last_error
        assert traffic.ping("client", "server").received == 1

    @_cases(RECURSIVE)
    def test_a_recursive_callback_stops_inside_the_kernel_stack(
        self, small, router, traffic, source
    ):
        body = f"local function work() {source} end pcall(work) return 1"
        with small.runtime(
            "recursive", source=_hook(body, "accept"), sleep=False, netns=router["router"].netns
        ) as runtime:
            assert traffic.ping("client", "server").received == 1
            assert runtime.info().calls >= 2

    def test_a_callback_below_its_budget_never_fails(self, small, router, traffic):
        # About 60,000 of the 100,000 instructions: some milliseconds under emulation.
        body = "for _ = 1, 20000 do skb = skb end return 1"
        with small.runtime(
            "busy", source=_hook(body, "drop"), sleep=False, netns=router["router"].netns
        ) as runtime:
            assert traffic.ping("client", "server", count=5).received == 5
            assert runtime.info().errors == 0


def _hook(body: str, on_error: str) -> str:
    return f"""
    local nf = require "netfilter"
    nf.register{{pf = nf.family.IPV4, hooknum = nf.inet_hooks.FORWARD, priority = 0,
                onerror = "{on_error}", hook = function(skb) {body} end}}
    """
