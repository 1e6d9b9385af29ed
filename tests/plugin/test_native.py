"""With --native kernel tests run on the kernel that pytest runs on, with the same fixtures."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

POLICY = """
local nf = require "netfilter"
nf.register{
  pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
  hook = function(skb)
    print("saw a packet")
    return skb:dport() == 53 and nf.action.DROP or nf.action.ACCEPT
  end,
}
"""

CASES = """
import os
import pytest
from bridge.traffic import dns_question

pytestmark = pytest.mark.kernel

def test_here(policy, send, expect, lunatik):
    assert "LUNABRIDGE_IN_LAB" not in os.environ
    runtime = policy("policy.lua")
    assert runtime.name == "policy.lua"
    expect(send(dns_question("example.com"))).dropped()
    assert lunatik.info().runtimes == 1

def test_that_is_wrong(policy, send, expect):
    policy("policy.lua")
    expect(send(dns_question("example.com"))).accepted()
"""


def test_they_run_here(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LUNABRIDGE_IN_LAB", raising=False)
    pytester.makefile(".lua", policy=POLICY)
    pytester.makepyfile(CASES)
    result = pytester.runpytest_subprocess(
        "-p", "bridge.testing.plugin", "-p", "no:cacheprovider", "--native"
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "lunabridge: kernel tests run here, on Linux *",
            "E  *AssertionError: expected accepted, but saw dropped (last seen at *",
            "E  *>   1  accepted  dropped (last seen at *",
            "E  *policy.lua at FORWARD of router: 1 packet (1 dropped)",
            "E  *log: runtime * (policy.lua): saw a packet",
        ]
    )
