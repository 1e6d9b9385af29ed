"""headers.lua reads what scapy builds, and refuses headers that are cut off or lie."""

from __future__ import annotations

import ipaddress
import random

import pytest

pytestmark = pytest.mark.kernel

WORK = """
local headers = require "headers"
local readers = { "ethernet", "arp", "ip", "ipv4", "ipv6", "tcp", "udp", "icmp", "icmp6" }
local option = function(name)
  return function(bytes, _, kind)
    local header, reason = headers[name](bytes)
    if not header then return nil, reason end
    local offset, size = headers.option(bytes, header, kind)
    if not offset then return nil, size end
    return bytes:sub(offset + 1, offset + size)
  end
end
local works = {
  option4 = option("ipv4"), option = option("tcp"),
  mss = function(bytes) return headers.mss(bytes, (assert(headers.tcp(bytes)))) end,
  all = function(bytes)
    for _, name in ipairs(readers) do
      local header, reason = headers[name](bytes)
      assert(header or type(reason) == "string")
      if header and header.options then
        for kind = 0, 10 do headers.option(bytes, header, kind) end
        headers.mss(bytes, header)
      end
    end
    return true
  end,
  into = function(first, _, second)
    local into = {}
    assert(headers.icmp(first, 0, into) == into and into.id)
    assert(headers.icmp(second, 0, into) == into)
    return into
  end,
  untouched = function(bytes)
    local into = {}
    for _, name in ipairs(readers) do
      assert(not headers[name](bytes, 0, into))
    end
    return next(into) == nil
  end,
}
function work(bytes, what, ...)
  if works[what] then return works[what](bytes, what, ...) end
  return headers[what](bytes, ...)
end
"""


def _bytes(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def _built(packet: object) -> bytes:
    return bytes(packet)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def work(lua):
    return lua(WORK)


def test_ethernet(work):
    from scapy.layers.l2 import Dot1Q, Ether

    plain = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x86DD)
    ends = {"destination": b"\2\0\0\0\0\1", "source": b"\2\0\0\0\0\2"}
    assert work(_built(plain), "ethernet") == ends | {"type": 0x86DD, "payload": 14}
    tagged = plain / Dot1Q(vlan=100, prio=5, type=0x0800)
    tagged.type = 0x8100
    assert work(_built(tagged), "ethernet") == ends | {
        "type": 0x0800, "payload": 18, "vlan": 100, "vlan_priority": 5,
    }  # fmt: skip
    double = plain / Dot1Q(vlan=7, type=0x8100) / Dot1Q(vlan=9, type=0x0806)
    double.type = 0x88A8
    assert work(_built(double), "ethernet") == ends | {
        "type": 0x0806, "payload": 22, "vlan": 7, "vlan_priority": 0, "inner_vlan": 9,
    }  # fmt: skip
    triple = _built(double)[:-2] + b"\x81\x00" + b"\0\1\x08\x00"
    assert work(triple, "ethernet") == [None, b"more than two VLAN tags"]


def test_arp(work):
    from scapy.layers.l2 import ARP

    packet = ARP(
        op=2, hwsrc="02:00:00:00:00:01", psrc="192.0.2.1",
        hwdst="02:00:00:00:00:02", pdst="192.0.2.2",
    )  # fmt: skip
    assert work(_built(packet), "arp") == {
        "operation": 2,
        "sender_mac": b"\2\0\0\0\0\1",
        "sender": _bytes("192.0.2.1"),
        "target_mac": b"\2\0\0\0\0\2",
        "target": _bytes("192.0.2.2"),
    }
    other = bytearray(_built(packet))
    other[1] = 6
    assert work(bytes(other), "arp") == [None, b"not ARP for IPv4 over Ethernet"]


def test_ipv4_with_options_and_fragments(work):
    from scapy.layers.inet import IP, IPOption_Router_Alert

    packet = IP(
        src="192.0.2.1", dst="198.51.100.7", tos=0xB9, id=0xBEEF, flags="MF+DF", frag=185,
        ttl=3, proto=17, options=[IPOption_Router_Alert()],
    ) / (b"x" * 8)  # fmt: skip
    raw = _built(packet)
    expected = {
        "version": 4, "header_length": 24, "length": 32, "dscp": 0xB9 >> 2, "ecn": 1,
        "id": 0xBEEF, "dont_fragment": True, "more_fragments": True, "fragment_offset": 1480,
        "ttl": 3, "protocol": 17, "checksum": int.from_bytes(raw[10:12], "big"),
        "source": _bytes("192.0.2.1"), "destination": _bytes("198.51.100.7"),
        "options": 20, "payload": 24,
    }  # fmt: skip
    assert work(raw, "ipv4") == expected
    assert work(raw, "ip") == expected
    moved = expected | {"options": 34, "payload": 38}
    assert work(bytes(14) + raw, "ipv4", 14) == moved
    assert work(raw, "option4", 148) == b"\0\0"
    assert work(raw, "option4", 7) is None


@pytest.mark.parametrize("flags", ["", "DF", "MF"])
def test_each_ipv4_flag_has_its_name(work, flags):
    from scapy.layers.inet import IP

    header = work(_built(IP(flags=flags)), "ipv4")
    assert header["dont_fragment"] == (flags == "DF")
    assert header["more_fragments"] == (flags == "MF")
    assert header["fragment_offset"] == 0


def test_ipv6(work):
    from scapy.layers.inet6 import IPv6

    raw = _built(IPv6(src="2001:db8::1", dst="2001:db8::2", tc=0xB9, fl=0x12345, hlim=9, nh=59))
    expected = {
        "version": 6, "length": 40, "dscp": 0xB9 >> 2, "ecn": 1, "flow_label": 0x12345,
        "ttl": 9, "next_header": 59, "protocol": 59, "payload": 40, "extensions": 0,
        "source": _bytes("2001:db8::1"), "destination": _bytes("2001:db8::2"),
        "fragment_offset": 0, "more_fragments": False,
    }  # fmt: skip
    assert work(raw, "ipv6") == expected
    assert work(raw, "ip") == expected


def test_ipv6_extension_headers_are_walked(work):
    from scapy.layers.inet import UDP
    from scapy.layers.inet6 import (
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrFragment,
        IPv6ExtHdrHopByHop,
        IPv6ExtHdrRouting,
        PadN,
    )
    from scapy.layers.ipsec import AH

    walked = (
        IPv6() / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"x" * 12)])
        / IPv6ExtHdrRouting(addresses=["2001:db8::9"]) / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrFragment(offset=0, m=1, id=77) / AH(nh=17, payloadlen=4, icv=b"y" * 12)
        / UDP(dport=53)
    )  # fmt: skip
    raw = _built(walked)
    header = work(raw, "ipv6")
    assert (header["next_header"], header["protocol"], header["extensions"]) == (0, 17, 5)
    assert (header["id"], header["more_fragments"], header["fragment_offset"]) == (77, True, 0)
    assert work(raw, "udp", header["payload"])["destination_port"] == 53
    later = IPv6() / IPv6ExtHdrFragment(offset=185, m=0, id=78, nh=17) / (b"z" * 8)
    header = work(_built(later), "ipv6")
    assert (header["protocol"], header["payload"], header["extensions"]) == (17, 48, 1)
    assert (header["id"], header["more_fragments"], header["fragment_offset"]) == (
        78,
        False,
        1480,
    )


@pytest.mark.parametrize(("count", "walks"), [(16, True), (17, False), (5000, False)])
def test_ipv6_extension_headers_are_bounded(work, count, walks):
    from scapy.layers.inet6 import IPv6

    options = b"\x3c\0\1\4\0\0\0\0" * (count - 1) + b"\x11\0\1\4\0\0\0\0"
    raw = _built(IPv6(nh=60)) + options + bytes(8)
    found = work(raw, "ipv6")
    if walks:
        assert (found["protocol"], found["payload"]) == (17, 40 + 8 * count)
    else:
        assert found == [None, b"more than 16 IPv6 extension headers"]


def test_tcp_with_options(work):
    from scapy.layers.inet import TCP

    packet = TCP(
        sport=40000, dport=443, seq=0xFFFFFFFE, ack=7, flags="SEC", window=0xFFFF,
        chksum=0xABCD, urgptr=5,
        options=[("NOP", None), ("MSS", 1460), ("WScale", 7), ("SAckOK", b"")],
    )  # fmt: skip
    raw = _built(packet)
    size = len(raw)
    assert work(raw, "tcp") == {
        "source_port": 40000, "destination_port": 443, "sequence": 0xFFFFFFFE,
        "acknowledgement": 7, "header_length": size, "flags": 0xC2, "fin": False, "syn": True,
        "rst": False, "psh": False, "ack": False, "urg": False, "ece": True, "cwr": True,
        "window": 0xFFFF, "checksum": 0xABCD, "urgent": 5, "options": 20, "payload": size,
    }  # fmt: skip
    assert work(raw, "mss") == 1460
    assert work(raw, "option", 3) == b"\7"
    assert work(raw, "option", 4) == b""
    assert work(raw, "option", 8) is None


@pytest.mark.parametrize("flag", ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"])
def test_each_tcp_flag_has_its_name(work, flag):
    from scapy.layers.inet import TCP

    letter = {"ece": "E", "cwr": "C"}.get(flag, flag[0].upper())
    header = work(_built(TCP(flags=letter)), "tcp")
    assert [name for name, value in header.items() if value is True] == [flag]


@pytest.mark.parametrize(
    ("options", "result"),
    [
        (b"\2\4\5\xb4", 1460),
        (b"\1\1\1\1", None),
        (b"\0\2\4\5", None),
        (b"\1\2\4\5", [None, b"malformed option"]),
        (b"\2\3\5\0", [None, b"malformed option"]),
        (b"\3\0\0\0", [None, b"malformed option"]),
        (b"\3\1\0\0", [None, b"malformed option"]),
        (b"\1\1\1\2", [None, b"malformed option"]),
    ],
)
def test_tcp_options_that_end_or_lie(work, options, result):
    assert work(bytes(12) + b"\x60" + bytes(7) + options, "mss") == result


def test_udp(work):
    from scapy.layers.inet import UDP

    raw = _built(UDP(sport=1, dport=65535, chksum=0x1234) / b"abc")
    assert work(raw, "udp") == {
        "source_port": 1, "destination_port": 65535, "length": 11, "checksum": 0x1234,
        "payload": 8,
    }  # fmt: skip


def test_icmp(work):
    from scapy.layers.inet import ICMP

    common = {"code": 0, "checksum": 0x1234, "payload": 8}
    echo = _built(ICMP(type=8, id=7, seq=9, chksum=0x1234))
    assert work(echo, "icmp") == common | {"type": 8, "id": 7, "sequence": 9}
    needed = _built(ICMP(type=3, code=4, nexthopmtu=1280, chksum=0x1234))
    assert work(needed, "icmp") == common | {"type": 3, "code": 4, "mtu": 1280}
    redirect = _built(ICMP(type=5, gw="192.0.2.9", chksum=0x1234))
    assert work(redirect, "icmp") == common | {"type": 5, "gateway": _bytes("192.0.2.9")}
    # A table that is used again keeps nothing of the message before.
    assert work(echo, "into", needed) == common | {"type": 3, "code": 4, "mtu": 1280}


def test_icmp6(work):
    from scapy.layers.inet6 import (
        ICMPv6EchoReply,
        ICMPv6EchoRequest,
        ICMPv6ND_NS,
        ICMPv6PacketTooBig,
        ICMPv6ParamProblem,
    )

    common = {"code": 0, "checksum": 0x1234, "payload": 8}
    echo = _built(ICMPv6EchoReply(id=7, seq=9, cksum=0x1234))
    assert work(echo, "icmp6") == common | {"type": 129, "id": 7, "sequence": 9}
    request = _built(ICMPv6EchoRequest(id=8, seq=10, cksum=0x1234))
    assert work(request, "icmp6") == common | {"type": 128, "id": 8, "sequence": 10}
    big = _built(ICMPv6PacketTooBig(mtu=1280, cksum=0x1234))
    assert work(big, "icmp6") == common | {"type": 2, "mtu": 1280}
    problem = _built(ICMPv6ParamProblem(ptr=40, cksum=0x1234))
    assert work(problem, "icmp6") == common | {"type": 4, "pointer": 40}
    solicitation = _built(ICMPv6ND_NS(tgt="2001:db8::1", cksum=0x1234))
    expected = common | {"type": 135, "target": _bytes("2001:db8::1")}
    assert work(solicitation, "icmp6") == expected
    cut = work(solicitation[:23], "icmp6")
    assert cut == [None, b"truncated neighbour discovery message"]


SHORTEST = {
    "ethernet": 14, "arp": 28, "ip": 20, "ipv4": 20, "tcp": 20, "udp": 8, "icmp": 8, "icmp6": 8,
}  # fmt: skip
WHOLE = {
    "arp": b"\0\1\x08\0\6\4" + bytes(22),
    "ip": b"\x45\0\0\x14" + bytes(16),
    "ipv4": b"\x45\0\0\x14" + bytes(16),
    "tcp": bytes(12) + b"\x50" + bytes(7),
    "udp": b"\0\0\0\0\0\x08\0\0",
}


@pytest.mark.parametrize("name", SHORTEST)
def test_every_truncated_header_is_refused_with_a_reason(work, name):
    whole = WHOLE.get(name, bytes(SHORTEST[name]))
    assert isinstance(work(whole, name), dict)
    for one in work.each([whole[:size] for size in range(len(whole))], name):
        assert one[0] is None
        assert one[1].startswith(b"truncated ")


def test_every_truncated_ipv6_header_is_refused_with_a_reason(work):
    whole = (
        b"\x60"
        + bytes(5)
        + b"\x3c\x40"
        + bytes(32)
        + b"\x2c\1"
        + bytes(14)
        + b"\x11"
        + bytes(7)
    )
    assert work(whole, "ipv6")["payload"] == len(whole)
    for one in work.each([whole[:size] for size in range(len(whole))], "ipv6"):
        assert one[0] is None
        assert one[1].startswith(b"truncated IPv6 ")


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("ipv4", b"\x65" + bytes(19), b"not IPv4"),
        ("ipv4", b"\x44\0\0\x14" + bytes(16), b"the IPv4 header claims less than 20 bytes"),
        ("ipv4", b"\x46\0\0\x18" + bytes(16), b"truncated IPv4 header"),
        (
            "ipv4",
            b"\x46\0\0\x17" + bytes(20),
            b"the IPv4 packet claims to be shorter than its header",
        ),
        ("ipv6", b"\x45" + bytes(39), b"not IPv6"),
        ("ip", b"\x55" + bytes(39), b"neither IPv4 nor IPv6"),
        ("tcp", bytes(12) + b"\x4f" + bytes(7), b"the TCP header claims less than 20 bytes"),
        ("tcp", bytes(12) + b"\xf0" + bytes(46), b"truncated TCP header"),
        ("udp", b"\0\0\0\0\0\7\0\0", b"the UDP datagram claims less than 8 bytes"),
        ("ethernet", bytes(12) + b"\x81\0\0\1\x08", b"truncated VLAN tag"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(work, name, raw, reason):
    assert work(raw, name) == [None, reason]


def test_a_refused_header_leaves_the_table_untouched(work):
    assert work(b"\xff" * 7, "untouched") is True


def test_offsets_outside_the_bytes_are_refused(work):
    for name in (*SHORTEST, "ipv6"):
        for offset in (-1, 100, 2**62):
            assert work(bytes(60), name, offset)[0] is None


def test_random_bytes_never_raise_an_error(work):
    chosen = random.Random(791)
    starts = [b"\x45", b"\x4f", b"\x60", b"\x60\0\0\0\0\0\0", b""]
    raw = [chosen.choice(starts) + chosen.randbytes(chosen.randrange(80)) for _ in range(1000)]
    assert work.each(raw, "all", together=8) == [True] * len(raw)
