"""On the sanitizer kernel the gates catch each kind of planted defect.

After some of them lockdep is off, so these have a guest of their own.
"""

from __future__ import annotations

import pytest

CASE = """
import pytest, socket, subprocess
from bridge.lunatik import GUEST_MODULE, Lunatik

HOOK = '''
local netfilter = require "netfilter"
local sabotage = require "sabotage"
netfilter.register{{
  pf = netfilter.family.IPV4, hooknum = netfilter.inet_hooks.LOCAL_OUT, priority = 0,
  hook = function() sabotage.{plant}() return netfilter.action.ACCEPT end,
}}
'''

@pytest.mark.kernel
def test_inner():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with Lunatik.load() as lunatik:
        subprocess.run(["insmod", GUEST_MODULE.with_name("lunatik_sabotage.ko")], check=True)
        try:
            with (
                lunatik.runtime("plant", source=HOOK, sleep=False) as runtime,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            ):
                sender.sendto(b"x", ("127.0.0.1", 9))
                assert runtime.info().calls >= 1
        finally:
            subprocess.run(["rmmod", "lunatik_sabotage"], check=True)
"""


def _run(pytester: pytest.Pytester, plant: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(CASE.format(plant=plant))
    return pytester.runpytest_subprocess(
        "-p", "bridge.testing.plugin", "-p", "no:cacheprovider", *options
    )


def _plant(
    name: str, splat: str, *more: str, alone: bool = False, maybe: str | None = None
) -> object:
    marks = [pytest.mark.kernel(alone=alone, sanitizer=True)]
    marks += [pytest.mark.expects_splat(text) for text in (splat, *more)]
    if maybe:
        marks.append(pytest.mark.expects_splat(maybe, maybe=True))
    return pytest.param(name, splat, alone, marks=marks, id=name)


PLANTS = [
    _plant(
        "use_after_free", "KASAN: slab-use-after-free in sabotage_use_after_free", alone=True
    ),
    _plant("overflow", "KASAN: slab-out-of-bounds in sabotage_overflow", alone=True),
    _plant("invert", "possible circular locking dependency", alone=True),
    _plant("mutex", "sleeping function called", "Invalid wait context", alone=True),
    # If something else has reclaimed memory meanwhile, its locks show the same mistake.
    _plant(
        "allocate",
        "sleeping function called",
        alone=True,
        maybe="possible irq lock inversion dependency",
    ),
]


@pytest.mark.parametrize(("plant", "splat", "turns_lockdep_off"), PLANTS)
def test_a_planted_defect_fails_the_test_that_met_it(
    pytester, *, plant, splat, turns_lockdep_off
):
    result = _run(pytester, plant)
    assert result.parseoutcomes()["errors"] >= 1
    result.stdout.fnmatch_lines([f"*kernel log: *{splat}*"])
    unwatched = "lockdep has turned itself off, so locks went unwatched"
    assert (unwatched in result.stdout.str()) is turns_lockdep_off


# Alone, because a pointer left on some stack may hide a loss from the session's look.
@pytest.mark.kernel(sanitizer=True, alone=True)
@pytest.mark.expects_splat("new suspected memory leaks")
def test_lost_memory_fails_the_session(pytester, monkeypatch):
    monkeypatch.delenv("LUNABRIDGE_IN_LAB")  # where the session itself has to look
    result = _run(pytester, "lose", "--native")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*at the end of the session:*",
            "*unreferenced object * (size 128):*",
            "*nf_hook_slow*",
        ]
    )


@pytest.mark.kernel(sanitizer=True, alone=True)
@pytest.mark.expects_leak("nf_hook_slow")
def test_lost_memory_is_found_when_the_guest_has_done_its_tests(pytester):
    _run(pytester, "lose").assert_outcomes(passed=1)
