"""The policies below lua/ decide as their first comments say."""

from __future__ import annotations

import pytest

from bridge.errors import LuaError
from bridge.traffic import Verdict, dns_question

pytestmark = pytest.mark.kernel

both_versions = pytest.mark.parametrize("version", [4, 6])
ACCEPTED, DROPPED = Verdict.ACCEPTED, Verdict.DROPPED


@pytest.fixture
def load(lunatik, router):
    """Load a policy of the tree at the router."""

    def load(name: str):
        return lunatik.runtime(name, sleep=False, netns=router["router"].netns)

    return load


def _verdicts(traffic, *packets):
    return [outcome.verdict for outcome in traffic.send(list(packets))]


def _packet(version: int, upper: object) -> object:
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    return (IPv6() if version == 6 else IP()) / upper


@both_versions
def test_accept_accepts_everything(load, traffic, version):
    from scapy.layers.inet import TCP, UDP

    runtime = load("accept")
    packets = [_packet(version, layer) for layer in (UDP(dport=53), TCP(dport=53))]
    assert _verdicts(traffic, *packets) == [ACCEPTED] * 2
    assert runtime.info().errors == 0


@both_versions
def test_drop_port_drops_its_port_alone_and_changes_it_live(load, traffic, version):
    from scapy.layers.inet import TCP, UDP

    runtime = load("drop_port")
    packets = [
        _packet(version, layer)
        for layer in (UDP(dport=53), TCP(dport=53), UDP(dport=54), UDP(sport=53, dport=9))
    ]
    assert _verdicts(traffic, *packets) == [DROPPED, DROPPED, ACCEPTED, ACCEPTED]
    assert runtime.resume(54) == 54
    assert _verdicts(traffic, *packets) == [ACCEPTED, ACCEPTED, DROPPED, ACCEPTED]
    with pytest.raises(LuaError, match="resume takes a port number"):
        runtime.resume("no port")
    assert runtime.info().errors == 0


def test_drop_port_finds_the_port_behind_ipv6_extension_headers(load, traffic):
    from scapy.layers.inet import UDP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment

    load("drop_port")
    dropped = [
        IPv6() / IPv6ExtHdrDestOpt() / UDP(dport=53),
        IPv6() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / UDP(dport=53),
        IPv6() / IPv6ExtHdrFragment(m=1, offset=0, id=7) / UDP(dport=53) / (b"x" * 8),
    ]
    passed = [
        IPv6() / IPv6ExtHdrDestOpt() / UDP(dport=54),
        IPv6() / IPv6ExtHdrFragment(m=0, offset=9, id=8, nh=17) / (b"\0\x35" * 8),
    ]
    assert _verdicts(traffic, *dropped) == [DROPPED] * len(dropped)
    assert _verdicts(traffic, *passed) == [ACCEPTED] * len(passed)


SCTP, UDP_LITE = 132, 136


def test_drop_port_lets_what_has_no_port_or_another_protocol_pass(load, traffic):
    from scapy.layers.inet import IP

    runtime = load("drop_port")
    ports = b"\x9c\x40\0\x35"
    packets = [
        IP(frag=5, proto=17) / (b"\0\x35" * 8),
        IP(proto=17) / ports[:3],
        IP(proto=17),
        IP(proto=SCTP) / ports / bytes(8),
        IP(proto=UDP_LITE) / ports / bytes(4),
    ]
    assert _verdicts(traffic, *packets) == [ACCEPTED] * len(packets)
    assert _verdicts(traffic, IP(proto=17) / ports) == [DROPPED]
    assert runtime.info().errors == 0


@both_versions
def test_dns_block_drops_listed_names_and_those_below(load, traffic, version):
    runtime = load("dns_block")
    assert runtime.resume("block", "Bad.Example.") == 1
    assert runtime.resume("block", "bad.example") == 1
    names = ["bad.example", "www.BAD.example", "notbad.example", "example", "good.example"]
    questions = [dns_question(name, version=version) for name in names]
    expected = [DROPPED, DROPPED, ACCEPTED, ACCEPTED, ACCEPTED]
    assert _verdicts(traffic, *questions) == expected
    assert runtime.resume("allow", "bad.example") == 0
    assert _verdicts(traffic, *questions) == [ACCEPTED] * 5
    assert runtime.info().errors == 0


def test_dns_block_lets_what_it_cannot_read_pass_without_errors(load, traffic):
    from scapy.layers.inet import IP, TCP, UDP

    runtime = load("dns_block")
    runtime.resume("block", "bad.example")
    header = b"\0\1\1\0\0\1\0\0\0\0\0\0"
    messages = [
        b"",
        header,
        header + b"\x3fshort",
        header + b"\xc0\x0c\0\1\0\1",
        header + b"\x01a" * 130 + b"\0\0\1\0\1",
        b"\0\1\x81\0\0\1\0\0\0\0\0\0" + b"\3bad\7example\0\0\1\0\1",
        header + b"\0\0\1\0\1",
    ]
    listed = header + b"\3bad\7example\0\0\1\0\1"
    packets = [IP() / UDP(sport=40000, dport=53) / message for message in messages]
    packets += [
        IP() / TCP(sport=40000, dport=53, flags="PA") / listed,
        IP(proto=17) / b"\x9c\x40\0\x35",
        IP(proto=17, frag=5) / listed,
    ]
    assert _verdicts(traffic, *packets) == [ACCEPTED] * len(packets)
    assert runtime.info().errors == 0


@pytest.mark.parametrize("words", [("forbid", "x"), ("block",), (), (5, "x")])
def test_dns_block_refuses_other_words(load, words):
    with (
        load("dns_block") as runtime,
        pytest.raises(LuaError, match=r'takes "block" or "allow"'),
    ):
        runtime.resume(*words)


def _first_segments(version: int, hellos: list[bytes], *, dport: int = 443) -> list[object]:
    """What the first packet of a connection carries of each."""
    from scapy.layers.inet import TCP

    return [
        _packet(version, TCP(sport=40000 + number, dport=dport, flags="PA") / hello[:1000])
        for number, hello in enumerate(hellos)
    ]


@both_versions
def test_sni_block_drops_hellos_for_listed_names_and_those_below(
    load, traffic, client_hello, version
):
    runtime = load("sni_block")
    assert runtime.resume("block", "Bad.Example.") == 1
    names = ["bad.example", "www.BAD.example", "notbad.example", "example", None]
    hellos = _first_segments(version, [client_hello(name) for name in names])
    expected = [DROPPED, DROPPED, ACCEPTED, ACCEPTED, ACCEPTED]
    assert _verdicts(traffic, *hellos) == expected
    elsewhere = _first_segments(version, [client_hello("bad.example")], dport=80)
    assert _verdicts(traffic, *elsewhere) == [ACCEPTED]
    assert runtime.resume("allow", "bad.example") == 0
    assert _verdicts(traffic, *hellos) == [ACCEPTED] * 5
    assert runtime.info().errors == 0


@both_versions
def test_sni_block_stops_a_connection_at_its_hello_alone(load, traffic, client_hello, version):
    load("sni_block").resume("block", "bad.example")
    for name, whole in (("bad.example", False), ("good.example", True)):
        one = traffic.tcp_exchange(
            port=443, data=client_hello(name), version=version, timeout_s=2
        )
        assert one.connected
        assert one.completed == whole


def test_sni_block_lets_what_it_cannot_read_pass_without_errors(load, traffic, client_hello):
    from scapy.layers.inet import IP, TCP, UDP

    runtime = load("sni_block")
    runtime.resume("block", "bad.example")
    hello = client_hello("bad.example")
    name = hello.index(b"bad.example")
    data = [
        b"",
        b"\x16",
        b"\x16\3\1\xff\xff",
        hello[:name],
        hello[name:],
        b"GET / HTTP/1.1\r\n",
    ]
    packets = [IP() / TCP(sport=40000, dport=443, flags="PA") / one for one in data]
    packets += [
        IP() / TCP(sport=40000, dport=443, dataofs=15) / hello[:20],
        IP() / UDP(sport=40000, dport=443) / hello[:1000],
        IP(proto=6) / b"\x9c\x40\1\xbb\0\0\0\0",
        IP(proto=6, frag=5) / hello[:64],
    ]
    assert _verdicts(traffic, *packets) == [ACCEPTED] * len(packets)
    assert runtime.info().errors == 0


SOURCES = {4: ["192.0.2.1", "192.0.2.77", "203.0.113.5"],
           6: ["2001:db8:1::1", "2001:db8:1::77", "2001:db8:77::5"]}  # fmt: skip
NETWORKS = {4: ("192.0.2.0/24", "192.0.2.64/26"), 6: ("2001:db8:1::/64", "2001:db8:1::40/122")}


def _from(source: str) -> object:
    """A packet that nobody answers."""
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.inet6 import ICMPv6EchoReply, IPv6

    if ":" in source:
        return IPv6(src=source) / ICMPv6EchoReply()
    return IP(src=source) / ICMP(type="echo-reply")


@both_versions
def test_cidr_block_drops_sources_of_listed_prefixes_unless_excepted(load, traffic, version):
    runtime = load("cidr_block")
    packets = [_from(source) for source in SOURCES[version]]
    outer, inner = NETWORKS[version]
    assert _verdicts(traffic, *packets) == [ACCEPTED] * 3
    assert runtime.resume("block", outer) == 1
    assert _verdicts(traffic, *packets) == [DROPPED, DROPPED, ACCEPTED]
    assert runtime.resume("except", inner) == 2
    assert _verdicts(traffic, *packets) == [DROPPED, ACCEPTED, ACCEPTED]
    assert runtime.resume("remove", inner) == 1
    assert _verdicts(traffic, *packets) == [DROPPED, DROPPED, ACCEPTED]
    assert runtime.resume("remove", outer) == 0
    assert _verdicts(traffic, *packets) == [ACCEPTED] * 3
    assert runtime.info().errors == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("forbid", "10.0.0.0/8"), 'takes "block", "except" or "remove"'),
        ((), 'takes "block", "except" or "remove"'),
        (("block",), "a prefix is a text, not a nil"),
        (("block", "10.0.0.1/8"), "10.0.0.1/8 has bits set beyond its length"),
    ],
)
def test_cidr_block_refuses_what_it_cannot_list(load, words, message):
    with load("cidr_block") as runtime, pytest.raises(LuaError, match=message):
        runtime.resume(*words)


@both_versions
def test_rate_limit_lets_a_burst_from_each_source_pass(load, traffic, version):
    runtime = load("rate_limit")
    assert runtime.resume(1, 4, 3600) == 0
    first, neighbour, other = SOURCES[version]
    assert _verdicts(traffic, *[_from(first)] * 6) == [ACCEPTED] * 4 + [DROPPED] * 2
    assert _verdicts(traffic, *[_from(other)] * 5) == [ACCEPTED] * 4 + [DROPPED]
    # Hosts share the network that an IPv6 source is, and have IPv4 addresses of their own.
    assert _verdicts(traffic, _from(neighbour)) == [DROPPED if version == 6 else ACCEPTED]
    assert runtime.resume(1, 2, 3600) == (4 if version == 6 else 3)
    assert _verdicts(traffic, *[_from(first)] * 3) == [ACCEPTED] * 2 + [DROPPED]
    assert runtime.info().errors == 0


def test_rate_limit_lets_packets_pass_again_in_time(load, traffic):
    runtime = load("rate_limit")
    runtime.resume(1, 1, 3600)
    packet = _from(SOURCES[4][0])
    assert _verdicts(traffic, packet, packet) == [ACCEPTED, DROPPED]
    # So fast that a packet sent now finds its token, however soon it comes.
    runtime.resume(1_000_000_000, 1)
    assert _verdicts(traffic, packet, packet) == [ACCEPTED, ACCEPTED]


def test_rate_limit_refuses_wrong_limits(load):
    with load("rate_limit") as runtime, pytest.raises(LuaError, match="burst is an integer"):
        runtime.resume(5)
