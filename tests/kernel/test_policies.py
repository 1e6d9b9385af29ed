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


def test_drop_port_lets_later_ipv4_fragments_and_runts_pass_without_errors(load, traffic):
    from scapy.layers.inet import IP

    runtime = load("drop_port")
    packets = [
        IP(frag=5, proto=17) / (b"\0\x35" * 8),
        IP(proto=17) / b"\0\x35\0",
        IP(proto=17),
    ]
    assert _verdicts(traffic, *packets) == [ACCEPTED] * 3
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
    from scapy.layers.inet import IP, UDP

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
    packets = [IP() / UDP(sport=40000, dport=53) / message for message in messages]
    assert _verdicts(traffic, *packets) == [ACCEPTED] * len(packets)
    assert runtime.info().errors == 0


@pytest.mark.parametrize("words", [("forbid", "x"), ("block",), (), (5, "x")])
def test_dns_block_refuses_other_words(load, words):
    with (
        load("dns_block") as runtime,
        pytest.raises(LuaError, match=r'takes "block" or "allow"'),
    ):
        runtime.resume(*words)
