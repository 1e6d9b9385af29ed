"""The guest halves in a real kernel: as they are they pass, sabotaged they are red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge import runtimes, trial
from bridge.bench import Forwarded
from bridge.demo.scenario import CALLS, expectations, perform
from bridge.errors import LuaError
from bridge.events import Event, Packets, Proved
from bridge.lunatik import LUA_ROOT
from bridge.outcome import Outcome, judge_demo, judge_run

pytestmark = pytest.mark.kernel

DNS_BLOCK = (LUA_ROOT / "dns_block.lua").read_text()


def demonstrate(source: str | None = None) -> tuple[list[Event], Outcome]:
    events: list[Event] = []
    perform(events.append, source=source)
    return events, judge_demo(events, expectations(), len(CALLS))


def red_classes(events: list[Event]) -> set[str]:
    return {one.key for one in events if isinstance(one, Packets) and not one.as_expected}


def left_behind() -> list[str]:
    netns = Path("/run/netns")
    return [
        *(one.name for one in netns.glob("lb-*")),
        *(["the module"] if Path("/sys/module/lunatik").exists() else []),
    ]


def test_the_demonstration_passes_and_leaves_nothing() -> None:
    _, outcome = demonstrate()
    assert outcome.reasons == ()
    assert left_behind() == []


@pytest.mark.parametrize(
    ("sabotage", "wrong"),
    [
        (
            lambda text: text.replace("return DROP", "return ACCEPT"),
            {"listed/4", "listed/6", "stream/1"},
        ),
        (
            lambda text: text.replace("~= PORT", "== 0"),
            {"port/4", "port/6"},
        ),
        (
            lambda text: text.replace(
                "coroutine.yield(#blocked)", '"block", select(2, coroutine.yield(#blocked))'
            ),
            {"stream/2"},
        ),
    ],
    ids=["accepts all", "blocks on every port", "never allows again"],
)
def test_a_sabotaged_policy_is_red_and_names_its_classes(
    sabotage: Callable[[str], str], wrong: set[str]
) -> None:
    source = sabotage(DNS_BLOCK)
    assert source != DNS_BLOCK
    events, outcome = demonstrate(source)
    assert red_classes(events) == wrong
    assert not outcome.passed
    assert left_behind() == []


def run(source: str) -> tuple[list[Event], Outcome]:
    events: list[Event] = []
    trial.perform(events.append, trial.Trial("policy", source))
    return events, judge_run(events)


def test_a_ready_policy_passes_its_trial() -> None:
    events, outcome = run((LUA_ROOT / "drop_port.lua").read_text())
    assert outcome.reasons == ()
    seen = {one.key: one.seen for one in events if isinstance(one, Packets)}
    assert seen["dns/4"] == seen["dns/6"] == {"dropped": 3}
    assert seen["udp/6"] == {"accepted": 2}


HOOK = """
local netfilter = require "netfilter"
netfilter.register{{
  pf = netfilter.family.{family}, hooknum = netfilter.inet_hooks.{place}, priority = 0,
  hook = function(skb) {body} end,
}}
"""


@pytest.mark.parametrize(
    ("family", "place", "counted"),
    [("IPV4", "FORWARD", True), ("INET", "PRE_ROUTING", True), ("INET", "POST_ROUTING", False)],
)
def test_packets_are_counted_where_they_can_be(family: str, place: str, counted: bool) -> None:
    events, outcome = run(HOOK.format(family=family, place=place, body="return 1"))
    assert outcome.reasons == ()
    (proof,) = (one for one in events if isinstance(one, Proved))
    assert (proof.forwarded == proof.callbacks) == counted


def test_a_callback_that_fails_is_red() -> None:
    _, outcome = run(HOOK.format(family="INET", place="FORWARD", body="error('oops')"))
    assert "oops" in outcome.reasons[0]


def test_a_script_that_does_not_load_says_where() -> None:
    with pytest.raises(LuaError, match="policy:1"):
        run("error('oops')")
    assert left_behind() == []


def test_no_runtime_is_listed_without_the_module() -> None:
    assert runtimes._runtimes_here() == []


def test_forwarded_of_one_version() -> None:
    forwarded = Forwarded({4: 5, 6: 7}, {4: 1, 6: 0})
    assert forwarded.between([4], 6)
    assert not forwarded.between([4], 7)
