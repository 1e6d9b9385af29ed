"""What the packet object says of a packet: fields by name, bytes, and what goes with it."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel

NIL = None
ADDRESSES = {
    4: ("192.0.2.1", "198.51.100.1"),
    6: ("2001:db8:1::1", "2001:db8:2::1"),
}
both_versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    """A socket that takes what is sent to the server, which so has nothing to answer."""
    with ExitStack() as stack:
        taker = router["server"].socket(socket.AF_INET6, socket.SOCK_DGRAM, 0)
        stack.enter_context(taker).bind(("::", 9))
        yield


@pytest.fixture
def look(policy, traffic):
    """Send a packet and return what the expressions yield in the callback at FORWARD."""

    def look(packet, expressions: str):
        runtime = policy(
            # answers come back this way: the packet is the one from the client
            f"seen = seen or table.pack({expressions}) return ACCEPT",
            before="local seen",
            after="coroutine.yield() return table.unpack(seen, 1, seen.n)",
        )
        outcome = traffic.send(packet)[0]
        assert outcome.verdict == Verdict.ACCEPTED, (outcome, runtime.info().last_error)
        return runtime.resume()

    return look


def _ip(version: int, **fields: object):
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    return IPv6(**fields) if version == 6 else IP(**fields)


def _packed(version: int) -> tuple[bytes, bytes]:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    source, target = ADDRESSES[version]
    return socket.inet_pton(family, source), socket.inet_pton(family, target)


@both_versions
def test_udp_fields_by_name(look, version):
    from scapy.layers.inet import UDP

    packet = _ip(version) / UDP(sport=40000, dport=9) / b"payload"
    family = 10 if version == 6 else 2
    assert look(
        packet,
        "skb:family(), skb:protocol(), skb:sport(), skb:dport(), skb:saddr(), skb:daddr(),"
        "skb:payload(), skb:payload(3), skb:payload(3, 2), skb:payload(7), skb:tcpflags(),"
        "skb:icmp()",
    ) == (
        family, 17, 40000, 9, *_packed(version), b"payload", b"load", b"lo", b"", NIL, NIL,
    )  # fmt: skip


@both_versions
def test_tcp_fields_by_name(look, version):
    from scapy.layers.inet import TCP

    options = [("MSS", 1400), ("NOP", None), ("NOP", None)]
    packet = _ip(version) / TCP(sport=1, dport=65535, flags="RA", options=options) / b"xyz"
    assert look(
        packet,
        "skb:protocol(), skb:sport(), skb:dport(), skb:tcpflags(),"
        "skb:tcpflags() & netfilter.tcp_flags.RST, skb:payload()",
    ) == (6, 1, 65535, 0x14, 4, b"xyz")


@both_versions
def test_icmp_fields_by_name(look, version):
    from scapy.layers.inet import ICMP
    from scapy.layers.inet6 import ICMPv6EchoReply

    packet = _ip(4) / ICMP(type=0, seq=7) if version == 4 else _ip(6) / ICMPv6EchoReply(seq=7)
    protocol, kind = (1, 0) if version == 4 else (58, 129)
    assert look(
        packet / b"echo", "skb:protocol(), skb:sport(), skb:dport(), skb:payload(), skb:icmp()"
    ) == (protocol, NIL, NIL, b"echo", kind, 0)


def test_sctp_has_ports(look):
    from scapy.layers.inet import IP
    from scapy.layers.sctp import SCTP, SCTPChunkCookieAck

    packet = IP() / SCTP(sport=5, dport=6) / SCTPChunkCookieAck()
    assert look(packet, "skb:protocol(), skb:sport(), skb:dport(), #skb:payload()") == (
        132, 5, 6, 4,
    )  # fmt: skip


@both_versions
def test_ttl_and_dscp(look, version):
    from scapy.layers.inet import UDP

    given = {"hlim": 9, "tc": 0xB9} if version == 6 else {"ttl": 9, "tos": 0xB9}
    packet = _ip(version, **given) / UDP(dport=9)
    # at FORWARD the router has counted the hop
    assert look(packet, "skb:ttl(), skb:dscp()") == (8, 46)


def test_ipv4_options_are_walked(look):
    from scapy.layers.inet import IP, UDP, IPOption_NOP

    packet = IP(options=[IPOption_NOP()] * 8) / UDP(sport=7, dport=9) / b"data"
    assert look(packet, "skb:protocol(), skb:sport(), skb:dport(), skb:payload()") == (
        17, 7, 9, b"data",
    )  # fmt: skip


def test_ipv6_extension_headers_are_walked(look):
    from scapy.layers.inet import UDP
    from scapy.layers.inet6 import (
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrFragment,
        IPv6ExtHdrHopByHop,
        PadN,
    )

    packet = (
        IPv6()
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])
        / IPv6ExtHdrFragment(offset=0, m=0, id=1)
        / UDP(sport=7, dport=9)
        / b"data"
    )
    assert look(packet, "skb:protocol(), skb:sport(), skb:dport(), skb:payload()") == (
        17, 7, 9, b"data",
    )  # fmt: skip


def test_ipv6_without_next_header_has_no_protocol(look):
    from scapy.layers.inet6 import IPv6

    assert look(IPv6(nh=59) / b"xx", "skb:family(), skb:protocol(), skb:sport()") == (
        10, NIL, NIL,
    )  # fmt: skip


@both_versions
def test_only_the_first_fragment_has_ports(policy, traffic, version):
    from scapy.layers.inet import UDP, fragment
    from scapy.layers.inet6 import IPv6ExtHdrFragment, fragment6

    runtime = policy(
        """
        seen[#seen + 1] = skb:protocol()
        seen[#seen + 1] = skb:dport() or -1
        seen[#seen + 1] = skb:payload() and #skb:payload() or -1
        return DROP
        """,
        before="local seen = {}",
        after="coroutine.yield() return table.unpack(seen)",
    )
    source, target = ADDRESSES[version]
    head = _ip(version, src=source, dst=target)
    if version == 6:
        whole = head / IPv6ExtHdrFragment(id=77) / UDP(sport=5, dport=9) / (b"x" * 2000)
        parts = fragment6(whole, 1280)
    else:
        head.id = 77
        parts = fragment(head / UDP(sport=5, dport=9) / (b"x" * 2000), 1200)
    assert len(parts) == 2
    traffic.send(parts)
    first = 1280 - 40 - 8 - 8 if version == 6 else 1200 - 8
    assert runtime.resume() == (17, 9, first, 17, -1, -1)
    assert runtime.info().errors == 0


@both_versions
@pytest.mark.parametrize("size", [0, 1, 3, 7])
def test_a_packet_that_ends_within_its_headers_has_no_fields(look, version, size):
    from scapy.packet import Raw

    packet = _ip(version, **({"nh": 6} if version == 6 else {"proto": 6}))
    assert look(
        packet / Raw(b"\1\2\3\4\5\6\7"[:size]),
        "skb:protocol(), skb:sport(), skb:dport(), skb:tcpflags(), skb:payload()",
    ) == (6, 0x0102 if size > 1 else NIL, 0x0304 if size > 3 else NIL, NIL, NIL)


@pytest.mark.parametrize("doff", [0, 4, 15])
def test_a_tcp_header_of_an_impossible_length_has_no_payload(look, doff):
    from scapy.layers.inet import IP, TCP

    packet = IP() / TCP(flags="R", dataofs=doff) / b"1234"
    assert look(packet, "skb:tcpflags(), skb:payload()") == (4, NIL)


@pytest.mark.parametrize(
    ("headers", "protocol"),
    [
        (b"\x11", NIL),  # the second byte would say how long this header is
        (b"\x2b\0\0\0\0\0\0\0", NIL),  # a routing header should follow
        (b"\x11\xff\0\0\0\0\0\0", 17),  # UDP, beyond the end
    ],
)
def test_a_chain_of_ipv6_headers_that_leaves_the_packet_has_no_transport(
    look, headers, protocol
):
    from scapy.layers.inet6 import IPv6
    from scapy.packet import Raw

    packet = IPv6(nh=60) / Raw(headers)
    assert look(packet, "skb:family(), skb:protocol(), skb:dport(), skb:payload()") == (
        10, protocol, NIL, NIL,
    )  # fmt: skip


def test_the_packet_object_reads_like_a_data_object(look):
    """Scripts written for an earlier interface read the headers by host-order fields."""
    from scapy.layers.inet import IP, UDP

    packet = IP() / UDP(sport=0x0102, dport=9) / b"abc"
    assert look(
        packet,
        "skb:getuint8(9), skb:getbyte(9), skb:getuint16be(20), skb:getuint16(20),"
        "skb:getstring(28)",
    ) == (17, 17, 0x0102, 0x0201, b"abc")


@both_versions
def test_a_packet_knows_where_it_is(look, router, version):
    from scapy.layers.inet import UDP

    host = router["router"]
    ethertype = 0x86DD if version == 6 else 0x0800
    family = 10 if version == 6 else 2
    assert look(
        _ip(version) / UDP(dport=9),
        "skb:ethertype(), skb:ifindex(), skb:indev(), skb:outdev(), skb:vlan(), skb:hook()",
    ) == (ethertype, host.index("eth0"), host.index("eth0"), host.index("eth1"), NIL, 2, family)


@pytest.mark.parametrize(
    "call",
    ["skb.u8()", "skb.u8(1, 0)", "skb.u8(io, 0)", "skb.sport('x')", "skb.protocol({})",
     "skb.mark(setmetatable({}, {}))"],
)  # fmt: skip
def test_a_method_of_something_else_is_a_type_error(policy, traffic, call):
    from scapy.layers.inet import IP, UDP

    runtime = policy(f"{call} return ACCEPT")
    traffic.send(IP() / UDP(dport=9))
    assert "lunatik.skb expected" in runtime.info().last_error


def test_every_method_of_a_kept_packet_raises(policy, traffic):
    from scapy.layers.inet import IP, UDP

    methods = """
        checksum connmark copy ctstate daddr data dport dscp ethertype family getuint8 hook icmp
        ifindex indev mark outdev payload protocol reject resize saddr setuint8 sport string
        tcpflags ttl u8 u16 u32 vlan
    """
    runtime = policy(
        "kept = skb return ACCEPT",
        before="local kept",
        after="""
        local name = coroutine.yield()
        while true do
          local _, message = pcall(kept[name], kept, 0, 0)
          name = coroutine.yield(message)
        end
        """,
    )
    traffic.send(IP() / UDP(dport=9))
    for name in methods.split():
        assert b"the packet is gone" in runtime.resume(name), name
