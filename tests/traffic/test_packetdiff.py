from __future__ import annotations

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from bridge.packetdiff import FieldDiff, diff, fields, wrong_checksums


def _wire(packet: Packet) -> Packet:
    packet.src, packet.dst = ("192.0.2.1", "192.0.2.2") if IP in packet else ("::1", "::2")
    return type(packet)(bytes(packet))


def test_equal_packets_do_not_differ() -> None:
    packet = _wire(IP() / UDP() / b"x")
    assert diff(packet, packet.copy()) == []


def test_a_changed_field_is_named_with_both_values() -> None:
    found = diff(_wire(IP() / UDP(dport=53)), _wire(IP() / UDP(dport=54)))
    assert found == [FieldDiff("UDP.dport", 53, 54)]
    assert str(found[0]) == "UDP.dport: 53 -> 54"


@pytest.mark.parametrize("ip", [IP, IPv6])
def test_causes_come_before_consequences(ip: type[Packet]) -> None:
    found = [one.path for one in diff(_wire(ip() / UDP() / b"a"), _wire(ip() / UDP() / b"abc"))]
    assert found[0] == "Raw.load"
    assert found[1:] == (["IP.len"] if ip is IP else ["IPv6.plen"]) + ["UDP.len"]


def test_a_checksum_that_follows_is_no_difference_but_a_wrong_one_is() -> None:
    sent, seen = _wire(IP() / UDP(dport=53)), _wire(IP() / UDP(dport=54))
    seen[UDP].chksum ^= 1
    assert [one.path for one in diff(sent, seen)] == ["UDP.dport", "UDP.chksum"]
    assert wrong_checksums(seen) == {"UDP.chksum"}
    assert wrong_checksums(sent) == frozenset()


def test_a_changed_port_does_not_change_what_the_payload_is() -> None:
    question = DNS(id=1, qd=DNSQR(qname="example.com"))
    sent = _wire(IP() / UDP(sport=4000, dport=53) / question)
    seen = _wire(IP() / UDP(sport=4000, dport=9) / question)
    assert Raw in seen
    assert diff(sent, seen) == [FieldDiff("UDP.dport", 53, 9)]


def test_nested_fields_have_paths() -> None:
    sent, seen = (
        _wire(IP() / UDP() / DNS(id=1, qd=DNSQR(qname=name))) for name in ("a.test", "b.test")
    )
    assert diff(sent, seen) == [FieldDiff("DNS.qd[0].qname", b"a.test.", b"b.test.")]


def test_layers_of_one_name_are_numbered() -> None:
    sent, seen = (_wire(IP() / IP(src="192.0.2.3", dst="192.0.2.4", ttl=ttl)) for ttl in (1, 2))
    assert [one.path for one in diff(sent, seen)] == ["IP[1].ttl"]


def test_ignored_fields_are_left_out_by_name_and_pattern() -> None:
    sent, seen = _wire(IP(ttl=9, id=1) / UDP()), _wire(IP(ttl=8, id=2) / UDP())
    assert [one.path for one in diff(sent, seen, ignore=["IP.ttl"])] == ["IP.id"]
    assert diff(sent, seen, ignore=["IP.*"]) == []


def test_numbers_may_differ_within_a_tolerance() -> None:
    sent, seen = _wire(IP(ttl=9) / UDP()), _wire(IP(ttl=7) / UDP())
    assert diff(sent, seen, within={"IP.ttl": 2}) == []
    assert diff(sent, seen, within={"IP.ttl": 1}) == [FieldDiff("IP.ttl", 9, 7)]


def test_a_layer_that_is_gone_is_absent() -> None:
    found = diff(_wire(IP() / TCP()), _wire(IP(proto=6)))
    assert FieldDiff("TCP.sport", 20, None) in found
    assert "TCP.sport: 20 -> absent" in {str(one) for one in found}


def test_long_values_are_shortened_for_people_only() -> None:
    one = FieldDiff("Raw.load", b"x" * 100, b"\xff")
    assert str(one) == f"Raw.load: '{'x' * 32}'... (100 bytes) -> '\\\\xff'"
    assert fields(Raw(b"x" * 100))["Raw.load"] == b"x" * 100
