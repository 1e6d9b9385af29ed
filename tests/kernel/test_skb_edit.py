"""Changing packets: fields by name, bytes through views, size; checksums stay right."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel

both_versions = pytest.mark.parametrize("version", [4, 6])
ADDRESSES = {4: ("192.0.2.77", "198.51.100.77"), 6: ("2001:db8:1::77", "2001:db8:2::77")}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ORIGINAL = b"the original bytes"


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    """Sockets that take what is sent to the server, which so has nothing to answer."""
    with ExitStack() as stack:
        for port in (9, 0x0A0B):
            taker = router["server"].socket(socket.AF_INET6, socket.SOCK_DGRAM, 0)
            stack.enter_context(taker).bind(("::", port))
        yield


@pytest.fixture
def change(policy, traffic):
    """Send a packet through a callback's body; return what arrived, and the runtime."""

    def change(packet, body: str, **options: object):
        runtime = policy(
            f"{body} return ACCEPT",
            before="local seen",
            extra='onerror = "drop",',
            after="coroutine.yield() return seen",
        )
        outcome = traffic.send(packet, **options)[0]
        info = runtime.info()
        assert info.errors == 0, info.last_error
        return outcome, runtime

    return change


def _ip(version: int, **fields: object):
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    return IPv6(**fields) if version == 6 else IP(**fields)


def _transport(protocol: str):
    from scapy.layers.inet import TCP, UDP

    if protocol == "tcp":
        return TCP(sport=40000, dport=9, flags="R")
    return UDP(sport=40000, dport=9)


def _lua_bytes(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return "'" + "".join(f"\\x{byte:02x}" for byte in socket.inet_pton(family, address)) + "'"


def _consistent(packet) -> bool:
    """Whether lengths and checksums are those that scapy computes for such a packet."""
    computed = type(packet)(bytes(packet))
    for layer in computed.iterpayloads():
        for name in ("len", "plen", "chksum", "cksum"):
            if name in layer.fields:
                layer.delfieldval(name)
    return bytes(computed) == bytes(packet)


def _paths(outcome) -> list[str]:
    """Names of the fields that differ in a packet whose lengths and sums are right."""
    assert _consistent(outcome.seen)
    return [one.path for one in outcome.diff]


@both_versions
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_wrong_checksum_would_be_noticed(change, version, protocol):
    """Or the other tests of this file would show nothing."""
    packet = _ip(version) / _transport(protocol) / b"data"
    outcome, runtime = change(packet, "skb:data('payload'):setuint8(0, 0x20)")
    assert not _consistent(outcome.seen)
    runtime.stop()
    outcome, _ = change(packet, "")
    assert _consistent(outcome.seen)


@both_versions
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("field", "name"), [("sport", "sport"), ("dport", "dport")]
)  # fmt: skip
def test_ports_by_name(change, version, protocol, field, name):
    packet = _ip(version) / _transport(protocol) / b"some payload"
    outcome, runtime = change(packet, f"seen = skb:{field}(0x0a0b)")
    assert _paths(outcome) == [f"{protocol.upper()}.{name}"]
    assert getattr(outcome.seen[protocol.upper()], name) == 0x0A0B
    assert runtime.resume() == 0x0A0B


@both_versions
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("field", ["saddr", "daddr"])
def test_addresses_by_name(change, version, protocol, field):
    from scapy.layers.inet import ICMP
    from scapy.layers.inet6 import ICMPv6EchoReply

    if protocol == "icmp":
        transport = ICMPv6EchoReply() if version == 6 else ICMP(type=0)
    else:
        transport = _transport(protocol)
    address = ADDRESSES[version][field == "daddr"]
    outcome, runtime = change(
        _ip(version) / transport / b"odd", f"seen = skb:{field}({_lua_bytes(address)})"
    )
    layer, name = ("IPv6" if version == 6 else "IP"), ("src" if field == "saddr" else "dst")
    assert _paths(outcome) == [f"{layer}.{name}"]
    assert getattr(outcome.seen[layer], name) == address
    assert runtime.resume() == socket.inet_pton(FAMILIES[version], address)


def test_udp_without_checksum_stays_without(change):
    from scapy.layers.inet import IP, UDP

    packet = IP() / UDP(sport=1, dport=9, chksum=0) / b"data"
    outcome, _ = change(packet, f"skb:sport(7) skb:saddr({_lua_bytes('192.0.2.77')})")
    assert outcome.seen[UDP].chksum == 0


@both_versions
def test_a_sum_of_zero_is_sent_as_all_ones(change, version):
    """RFC 768: zero would say that there is no checksum."""
    from scapy.layers.inet import UDP

    packet = _ip(version) / UDP(sport=0, dport=9) / b"1234"
    probe, _ = change(packet, "")
    # Then a source port that is the checksum makes it zero.
    outcome, _ = change(packet, f"skb:sport({probe.seen[UDP].chksum})")
    assert outcome.seen[UDP].chksum == 0xFFFF
    outcome, _ = change(packet, f"skb:sport({probe.seen[UDP].chksum}) skb:checksum()")
    assert outcome.seen[UDP].chksum == 0xFFFF


@both_versions
def test_ttl_and_dscp_by_name(change, version):
    outcome, runtime = change(
        _ip(version, **({"tc": 3} if version == 6 else {"tos": 3})) / _transport("udp"),
        "seen = skb:ttl(33) * 100 + skb:dscp(46)",
    )
    ttl, tos = ("IPv6.hlim", "IPv6.tc") if version == 6 else ("IP.ttl", "IP.tos")
    assert sorted(_paths(outcome)) == sorted([ttl, tos])
    layer = outcome.seen["IPv6" if version == 6 else "IP"]
    assert (layer.fields[ttl.split(".")[1]], layer.fields[tos.split(".")[1]]) == (
        33, 46 << 2 | 3,
    )  # fmt: skip
    assert runtime.resume() == 3346


@both_versions
def test_the_addresses_of_fragments_change_alike(policy, traffic, router, version):
    """The sum is in the first fragment; the receiver checks it over the whole."""
    from scapy.layers.inet import UDP, fragment
    from scapy.layers.inet6 import IPv6ExtHdrFragment, fragment6

    address = ADDRESSES[version][0]
    policy(f"skb:saddr({_lua_bytes(address)}) return ACCEPT")
    head = _ip(
        version, dst=router["server"].address(version), src=router["client"].address(version)
    )
    payload = bytes(range(256)) * 10
    if version == 6:
        parts = fragment6(
            head / IPv6ExtHdrFragment(id=9) / UDP(sport=5, dport=2311) / payload, 1280
        )
    else:
        head.id = 9
        parts = fragment(head / UDP(sport=5, dport=2311) / payload, 1200)
    with router["server"].socket(FAMILIES[version], socket.SOCK_DGRAM) as taker:
        taker.bind(("", 2311))
        taker.settimeout(20)
        traffic.send(parts)
        received, source = taker.recvfrom(4096)
    assert (received, source[0]) == (payload, address)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("skb:sport(-1)", "a port is 0 to 65535"),
        ("skb:dport(65536)", "a port is 0 to 65535"),
        ("skb:dport('x')", "number expected"),
        ("skb:saddr('123')", "an IPv4 address is a string of 4 bytes"),
        ("skb:daddr(('x'):rep(16))", "an IPv4 address is a string of 4 bytes"),
        ("skb:ttl(256)", "a time to live is 0 to 255"),
        ("skb:dscp(64)", "a code point is 0 to 63"),
        ("skb:connmark(-1)", "a mark has 32 bits"),
        ("skb:mark(1 << 32)", "a mark has 32 bits"),
        ("skb:resize(27)", "a length of 27 is outside 28 to 65535"),
        ("skb:resize(65536)", "a length of 65536 is outside 28 to 65535"),
        ("skb:data('tail')", "invalid option 'tail'"),
    ],
)
def test_bad_values_are_named_and_change_nothing(policy, traffic, body, message):
    runtime = policy(f"{body} return ACCEPT")
    assert traffic.send(_ip(4) / _transport("udp"))[0].verdict == Verdict.ACCEPTED
    assert message in runtime.info().last_error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("skb:sport(5)", "the packet has no ports"),
        ("skb:resize(20)", "a fragment, or a packet that ends within"),
    ],
)
def test_what_a_later_fragment_lacks_cannot_be_set(policy, traffic, body, message):
    from scapy.layers.inet import IP

    runtime = policy(f"{body} return ACCEPT")
    assert traffic.send(IP(frag=1, proto=17) / b"12345678")[0].verdict == Verdict.ACCEPTED
    assert message in runtime.info().last_error


def test_the_ports_of_sctp_cannot_be_set(policy, traffic):
    from scapy.layers.inet import IP
    from scapy.layers.sctp import SCTP, SCTPChunkCookieAck

    runtime = policy("if skb:protocol() == 132 then skb:dport(5) end return ACCEPT")
    traffic.send(IP() / SCTP(sport=5, dport=6) / SCTPChunkCookieAck())
    assert "its checksum is of another kind" in runtime.info().last_error


@both_versions
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_checksum_completes_what_views_have_changed(change, version, protocol):
    packet = _ip(version) / _transport(protocol) / b"payload"
    outcome, runtime = change(
        packet,
        """
        skb:data("payload"):setstring(1, "EEK")
        skb:data("transport"):setuint16be(0, 77)
        skb:data():setuint8(skb:family() == 2 and 8 or 7, 9)
        seen = skb:checksum()
        """,
    )
    assert outcome.seen[protocol.upper()].sport == 77
    assert bytes(outcome.seen[protocol.upper()].payload) == b"pEEKoad"
    assert _consistent(outcome.seen)
    assert runtime.resume() is True


def test_checksum_says_when_it_cannot_know(change):
    from scapy.layers.inet import IP, UDP

    for packet in (
        IP(frag=1, proto=17) / b"12345678",
        IP(flags="MF") / UDP(dport=9) / b"12345678",
        IP(proto=47) / b"\0\0\x08\0" / b"123",
    ):
        # answers pass here too, and these are whole
        body = "skb:ttl(7) if seen == nil then seen = skb:checksum() end"
        outcome, runtime = change(packet, body)
        assert runtime.resume() is False
        assert [one.path for one in outcome.diff] == ["IP.ttl"]
        runtime.stop()


@both_versions
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("by", [-7, -3, 0, 5, 900])
def test_resize_keeps_lengths_and_checksums_right(change, traffic, version, protocol, by):
    from scapy.packet import Raw

    packet = _ip(version) / _transport(protocol) / b"payload"
    outcome, runtime = change(packet, f"seen = skb:resize(#skb + {by}) - #skb")
    expected = (b"payload" + bytes(max(by, 0)))[: 7 + by]
    seen = outcome.seen
    assert (bytes(seen[Raw].load) if Raw in seen else b"") == expected
    assert _consistent(seen)
    assert len(bytes(seen)) == len(bytes(outcome.packet)) + by
    assert runtime.resume() == 0


@both_versions
def test_resized_datagrams_are_taken_by_the_receiver(policy, router, version):
    policy(
        """
        if skb:family() == FAMILY and skb:dport() == 2312 then
          local size = #skb:payload()
          skb:resize(#skb + 4)
          skb:data("payload"):setstring(size, "more")
          skb:checksum()
        end
        return ACCEPT
        """.replace("FAMILY", "10" if version == 6 else "2")
    )
    with (
        router["server"].socket(FAMILIES[version], socket.SOCK_DGRAM) as taker,
        router["client"].socket(FAMILIES[version], socket.SOCK_DGRAM) as sender,
    ):
        taker.bind(("", 2312))
        taker.settimeout(20)
        for size in (0, 1, 700, 1000):
            sender.sendto(b"x" * size, (router["server"].address(version), 2312))
            assert taker.recv(4096) == b"x" * size + b"more"


@both_versions
def test_a_packet_that_others_hold_is_copied_before_it_is_changed(
    change, traffic, router, version
):
    """The capture on the router's first link has the packet when the callback runs."""
    packet = _ip(version) / _transport("udp") / ORIGINAL
    outcome, _ = change(
        packet,
        """
        skb:data("payload"):setstring(4, "CHANGED!")
        skb:sport(1) skb:ttl(5) skb:checksum()
        """,
    )
    assert outcome.verdict == Verdict.CHANGED
    frames = {
        (frame.host, frame.interface): frame.data
        for frame in traffic.frames
        if frame.data.endswith(ORIGINAL[-6:])
    }
    assert ORIGINAL in frames["router", "eth0"]
    assert b"the CHANGED! bytes" in frames["server", "eth0"]


@pytest.fixture(scope="module")
def offloading():
    """A topology whose links carry unfinished checksums and large packets."""
    from netns import Topology

    with Topology.router() as topology:
        for host in topology:
            for interface in host.interfaces:
                host.run(
                    ["ethtool", "-K", interface.name, "tx", "on", "rx", "on", "sg", "on",
                     "tso", "on", "gso", "on", "gro", "on"],
                    check=True,
                )  # fmt: skip
        yield topology


REWRITE = """
local nf = require "netfilter"
local ACCEPT = nf.action.ACCEPT
local largest, answered = 0, 0
local function hook(skb)
  if #skb > largest then largest = #skb end
  if skb:dport() == 7001 then
    CHANGE
    skb:dport(7002)
  elseif skb:sport() == 7002 then
    CHANGE
    skb:sport(7001)
    answered = answered + 1
  end
  return ACCEPT
end
nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
            onerror = "drop", hook = hook}
coroutine.yield()
return largest, answered
"""


@both_versions
@pytest.mark.parametrize(
    "change", ["", "skb:ttl(9) skb:dscp(8)", "skb:checksum()", "skb:data():getuint8(0)"]
)
def test_large_packets_with_unfinished_checksums_are_rewritten(
    script, offloading, version, change
):
    """What TCP sends in one piece of many segments, with the sums left to the device."""
    runtime = script(
        REWRITE.replace("CHANGE", change), sleep=False, netns=offloading["router"].netns
    )
    data = bytes(range(251)) * 1500
    address = offloading["server"].address(version)
    with (
        offloading["server"].socket(FAMILIES[version]) as listener,
        offloading["client"].socket(FAMILIES[version]) as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 7002))
        listener.listen()
        client.settimeout(30)
        client.connect((address, 7001))
        server, _ = listener.accept()
        with server:
            server.settimeout(30)
            # While somebody reads, because nobody promises room for all of it.
            with ThreadPoolExecutor(1) as pool:
                sent = pool.submit(client.sendall, data)
                received = b""
                while len(received) < len(data) and (part := server.recv(1 << 16)):
                    received += part
                sent.result()
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
            server.sendall(b"done")
        assert client.recv(4) == b"done"
    assert received == data
    assert runtime.info().errors == 0
    largest, answered = runtime.resume()
    assert largest > 3000
    assert answered > 0


@both_versions
def test_unfinished_checksums_of_datagrams_survive_every_change(script, offloading, version):
    runtime = script(
        """
        local nf = require "netfilter"
        nf.register{
          pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0, onerror = "drop",
          hook = function(skb)
            if skb:dport() ~= 7003 then return nf.action.ACCEPT end
            skb:data("payload"):setuint8(0, 0x58)
            skb:sport(99)
            skb:resize(#skb + 2)
            return nf.action.ACCEPT
          end,
        }
        """,
        sleep=False,
        netns=offloading["router"].netns,
    )
    with (
        offloading["server"].socket(FAMILIES[version], socket.SOCK_DGRAM) as taker,
        offloading["client"].socket(FAMILIES[version], socket.SOCK_DGRAM) as sender,
    ):
        taker.bind(("", 7003))
        taker.settimeout(20)
        sender.sendto(b"abc", (offloading["server"].address(version), 7003))
        data, source = taker.recvfrom(100)
        assert (data, source[1]) == (b"Xbc\0\0", 99), runtime.info().last_error


def test_a_large_packet_is_not_resized(script, offloading):
    runtime = script(
        """
        local nf = require "netfilter"
        nf.register{
          pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
          hook = function(skb)
            if #skb > 3000 then skb:resize(#skb - 1) end
            return nf.action.ACCEPT
          end,
        }
        """,
        sleep=False,
        netns=offloading["router"].netns,
    )
    with (
        offloading["server"].socket() as listener,
        offloading["client"].socket() as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 7004))
        listener.listen()
        client.connect((offloading["server"].address(), 7004))
        server, _ = listener.accept()
        with server:
            client.sendall(b"x" * 100_000)
            client.close()
            while server.recv(1 << 16):
                pass
    info = runtime.info()
    assert info.errors > 0
    assert "yet to be segmented" in info.last_error


@both_versions
def test_tcp_sends_again_what_it_had_and_not_what_a_callback_made_of_it(
    script, router, traffic, version
):
    """At LOCAL_OUT the packet is a copy of TCP's queue: its bytes are TCP's own."""
    runtime = script(
        """
        local nf = require "netfilter"
        local seen = {}
        nf.register{
          pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
          onerror = "drop",
          hook = function(skb)
            local payload = skb:dport() == 7005 and skb:payload()
            if not payload or payload == "" then return nf.action.ACCEPT end
            seen[#seen + 1] = payload
            skb:data("payload"):setstring(0, "BROKEN")
            if #seen == 1 then return nf.action.DROP end
            skb:data("payload"):setstring(0, payload:upper())
            skb:checksum()
            return nf.action.ACCEPT
          end,
        }
        coroutine.yield()
        return table.concat(seen, " ")
        """,
        sleep=False,
        netns=router["client"].netns,
    )
    with (
        router["server"].socket(FAMILIES[version]) as listener,
        router["client"].socket(FAMILIES[version]) as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 7005))
        listener.listen()
        client.connect((router["server"].address(version), 7005))
        server, _ = listener.accept()
        with server:
            server.settimeout(30)
            client.sendall(b"intact")
            assert server.recv(100) == b"INTACT"
    assert set(runtime.resume().split()) == {b"intact"}
    assert runtime.info().errors == 0
