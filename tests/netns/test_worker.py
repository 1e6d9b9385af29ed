from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bridge.errors import TopologyError
from netns import Topology
from netns.plan import Version

pytestmark = pytest.mark.kernel


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("only one argument")


def _where() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def _interfaces_scapy_sees() -> list[str]:
    from scapy.interfaces import get_if_list

    return sorted(get_if_list())


def _ping_with_scapy(target: str) -> str:
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
    from scapy.sendrecv import sr1

    v6 = ":" in target
    question = IPv6(dst=target) / ICMPv6EchoRequest() if v6 else IP(dst=target) / ICMP()
    answer = sr1(question, timeout=50, verbose=False)
    return "" if answer is None else str(answer.src)


def _raise() -> None:
    raise KeyError("the key")


def _raise_unpicklable() -> None:
    raise UnpicklableError(1, 2)


def test_a_call_runs_inside_the_namespace(router: Topology) -> None:
    assert [host.call(_where) for host in router] == [host.inode for host in router]


def test_one_worker_serves_all_calls(router: Topology) -> None:
    assert router.client.call(os.getpid) == router.client.call(os.getpid) != os.getpid()


def test_scapy_sees_the_interfaces_of_the_host(router: Topology) -> None:
    assert router["router"].call(_interfaces_scapy_sees) == ["eth0", "eth1", "lo"]


@pytest.mark.parametrize("version", [4, 6])
def test_scapy_finds_its_way_by_the_routes_of_the_host(
    router: Topology, version: Version
) -> None:
    target = router.server.address(version)
    assert router.client.call(_ping_with_scapy, target) == target


def test_an_exception_comes_back_with_its_traceback(router: Topology) -> None:
    with pytest.raises(KeyError, match="the key") as caught:
        router.client.call(_raise)
    assert "_raise" in caught.value.__notes__[0]
    assert router.client.call(os.getpid)


def test_an_exception_that_cannot_be_sent_is_described(router: Topology) -> None:
    with pytest.raises(TopologyError, match="UnpicklableError: only one argument"):
        router.client.call(_raise_unpicklable)


def test_a_result_that_cannot_be_sent_is_an_error(router: Topology) -> None:
    with pytest.raises(TypeError, match="pickle"):
        router.client.call(os.scandir, "/")
    assert router.client.call(os.getpid)


def test_what_cannot_be_sent_to_a_worker_is_refused(router: Topology) -> None:
    with pytest.raises(TopologyError, match="cannot be sent"):
        router.client.call(lambda: None)


def test_a_worker_that_dies_is_reported_and_replaced(router: Topology) -> None:
    first = router.client.call(os.getpid)
    with pytest.raises(TopologyError, match=r"ended during _exit \(status 7\)"):
        router.client.call(os._exit, 7)
    assert router.client.call(os.getpid) != first


def test_a_call_that_takes_too_long_is_ended(router: Topology) -> None:
    router.client.call(os.getpid)
    with pytest.raises(TopologyError, match=r"did not return within 0\.1 s"):
        router.client.call_within(0.1, time.sleep, 1000)
    assert router.client.call(os.getpid)


def test_megabytes_go_through(router: Topology) -> None:
    data = bytes(5_000_000)
    assert router.client.call(bytes.__add__, data, b"x") == data + b"x"
