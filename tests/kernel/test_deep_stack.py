"""Recursive scripts in callbacks far down the kernel stack: below a tower of VLANs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.lunatik import Lunatik
from netns import Topology

pytestmark = pytest.mark.kernel

HOSTILE = tomllib.loads(Path(__file__).with_name("hostile.toml").read_text())
FLOORS = 6
TOP = {"client": "10.9.0.1", "server": "10.9.0.2"}
SOURCE = """
local nf = require "netfilter"
local function work() {source} end
nf.register{{pf = nf.family.NETDEV, hooknum = nf.netdev_hooks.EGRESS, priority = 0,
            device = "eth0", hook = function(skb)
  pcall(work)
  return nf.action.ACCEPT
end}}
"""
DEPTH = """
depth = 0
local function f() depth = depth + 1 string.gsub("a", "a", f) end
f()
"""


@pytest.fixture(scope="module")
def tower() -> Iterator[Topology]:
    """Client and server, and on the cable between them VLANs upon VLANs."""
    with Topology.pair() as topology:
        for name, address in TOP.items():
            host, below = topology[name], "eth0"
            for floor in range(1, FLOORS + 1):
                link = f"ip link add link {below} name v{floor} type vlan id {floor}"
                host.run(link.split(), check=True)
                host.run(f"ip link set v{floor} up arp on".split(), check=True)
                below = f"v{floor}"
            host.run(f"ip address add {address}/24 dev {below}".split(), check=True)
        yield topology


def _ping(tower: Topology) -> int:
    """Return the status of one echo request, to the top of the server from the client's."""
    return tower["client"].run(["ping", "-c", "1", "-W", "20", TOP["server"]]).returncode


@pytest.mark.parametrize(
    "source", [pytest.param(text, id=name) for name, text in HOSTILE["recursive"].items()]
)
def test_recursion_below_a_deep_network_stack_stays_inside_it(tower, source):
    source = SOURCE.format(source=source)
    with Lunatik.load(body_budget=1_000_000) as lunatik:
        # the request leaves from a task, and the answer from a softirq
        runtimes = [
            lunatik.runtime("deep", source=source, sleep=False, netns=tower[name].netns)
            for name in TOP
        ]
        assert _ping(tower) == 0
        for runtime in runtimes:
            assert runtime.info().calls >= 1
            runtime.stop()


def test_the_tower_takes_stack_away_from_scripts(tower):
    """Without this the tests above might prove nothing."""
    depths = {}
    with Lunatik.load() as lunatik:
        for where in ("at the top", "below the tower"):
            hook = SOURCE.format(source=DEPTH) + "coroutine.yield() return depth"
            if where == "at the top":
                hook = hook.replace("NETDEV", "IPV4").replace('device = "eth0",', "")
                hook = hook.replace("netdev_hooks.EGRESS", "inet_hooks.LOCAL_OUT")
            netns = tower["client"].netns
            with lunatik.runtime("depth", source=hook, sleep=False, netns=netns) as runtime:
                assert _ping(tower) == 0
                depths[where] = runtime.resume()
    assert 1 < depths["below the tower"] < depths["at the top"]
