from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from scapy.layers.dns import DNS, DNSQR

from bridge.errors import TrafficError
from bridge.exchange import Ending, dns_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.traffic import Traffic
    from netns.plan import Version

    Policy = Callable[..., None]

both = pytest.mark.parametrize("version", [4, 6])


@pytest.mark.kernel
@both
@pytest.mark.parametrize("size", [0, 5, 300_000])
def test_tcp_data_goes_there_and_back(traffic: Traffic, version: Version, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    exchange = traffic.tcp_exchange(version=version, data=data, timeout_s=60)
    assert exchange.ending is Ending.COMPLETED
    assert exchange.connected
    assert exchange.at_server == exchange.at_client == data


@pytest.mark.kernel
@both
def test_a_port_nobody_serves_refuses(traffic: Traffic, version: Version) -> None:
    tcp = traffic.tcp_exchange(version=version, listen=False)
    udp = traffic.udp_exchange(version=version, listen=False)
    assert (tcp.ending, tcp.connected) == (Ending.REFUSED, False)
    assert udp.ending is Ending.REFUSED


@pytest.mark.kernel
@both
def test_a_dropped_connection_is_unanswered(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("tcp dport 7 drop")
    exchange = traffic.tcp_exchange(version=version, timeout_s=0.2)
    assert (exchange.ending, exchange.connected) == (Ending.UNANSWERED, False)


@pytest.mark.kernel
@both
def test_a_connection_reset_on_the_way_is_told(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("tcp dport 7 reject with tcp reset")
    assert traffic.tcp_exchange(version=version).ending is Ending.REFUSED


@pytest.mark.kernel
@both
def test_data_that_is_dropped_after_the_handshake_is_unanswered(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("tcp dport 7 tcp flags & psh == psh drop")
    exchange = traffic.tcp_exchange(version=version, timeout_s=0.3)
    assert exchange.connected
    assert exchange.ending is Ending.UNANSWERED
    assert exchange.at_server == b""


@pytest.mark.kernel
@both
def test_a_datagram_goes_there_and_back(traffic: Traffic, version: Version) -> None:
    exchange = traffic.udp_exchange(version=version, data=b"there")
    assert exchange.completed
    assert exchange.at_server == exchange.at_client == b"there"


@pytest.mark.kernel
@both
def test_a_dropped_datagram_and_a_dropped_echo_differ(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("udp dport 7 drop", "udp sport 8 drop")
    there = traffic.udp_exchange(version=version, port=7)
    back = traffic.udp_exchange(version=version, port=8)
    assert (there.ending, there.at_server) == (Ending.UNANSWERED, b"")
    assert (back.ending, back.at_server) == (Ending.UNANSWERED, b"hello")


@pytest.mark.kernel
@both
def test_the_kernel_answers_echo_requests(traffic: Traffic, version: Version) -> None:
    ping = traffic.ping(version=version, count=3, size_bytes=1001)
    assert (ping.sent, ping.received) == (3, 3)
    assert all(one > 0 for one in ping.times_s)


@pytest.mark.kernel
@both
def test_dropped_echo_requests_are_not_answered(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("meta l4proto icmp drop", "meta l4proto icmpv6 drop")
    assert traffic.ping(version=version, count=2).received == 0


@pytest.mark.kernel
def test_a_port_in_use_is_named(traffic: Traffic) -> None:
    with (
        traffic.dns_server(),
        pytest.raises(TrafficError, match="cannot serve port 53 of server"),
        traffic.dns_server(),
    ):
        pytest.fail("two servers on one port")


@pytest.mark.kernel
@both
def test_the_dns_server_serves_ordinary_clients(traffic: Traffic, version: Version) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with (
        traffic.dns_server(),
        traffic.topology.client.socket(family, socket.SOCK_DGRAM) as ours,
    ):
        ours.settimeout(60)
        ours.sendto(
            bytes(DNS(id=9, qd=DNSQR(qname="a.test"))),
            (traffic.topology.server.address(version), 53),
        )
        assert DNS(ours.recv(512)).id == 9


@pytest.mark.parametrize(
    ("qtype", "data"), [("A", "192.0.2.53"), ("AAAA", "2001:db8::53"), ("MX", None)]
)
def test_an_answer_repeats_its_question(qtype: str, data: str | None) -> None:
    question = DNS(id=0x1234, rd=1, qd=DNSQR(qname="www.example.com", qtype=qtype))
    written = dns_answer(bytes(question))
    assert written is not None
    answer = DNS(written)
    assert (answer.id, answer.qr, answer.aa, answer.rd, answer.rcode) == (0x1234, 1, 1, 1, 0)
    assert bytes(answer.qd[0]) == bytes(question.qd[0])
    assert answer.ancount == (data is not None)
    if data is not None:
        assert (answer.an[0].rrname, answer.an[0].rdata) == (b"www.example.com.", data)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        bytes(12),
        bytes(DNS(qr=1, qd=DNSQR(qname="a.test"))),
        struct.pack("!6H", 1, 0, 2, 0, 0, 0) + bytes(DNSQR(qname="a.test")) * 2,
        bytes(DNS(qd=DNSQR(qname="a.test")))[:-1],
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x3fabcdef",
    ],
)
def test_what_is_no_question_is_not_answered(message: bytes) -> None:
    assert dns_answer(message) is None
