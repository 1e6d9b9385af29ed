from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import ARP, Ether

from bridge import matching


def _raw(**fields: Any) -> bytes:
    sport = fields.pop("sport", 4000)
    load = fields.pop("load", b"payload")
    defaults = {"src": "192.0.2.1", "dst": "198.51.100.1", "id": 5}
    return bytes(IP(**defaults | fields) / UDP(sport=sport, dport=53) / load)


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
@pytest.mark.parametrize("ident", range(0, 65536, 1311))
def test_hops_change_life_and_checksum_only(hops: int, ident: int) -> None:
    aged = _raw(ttl=64 - hops, id=ident)
    assert matching.after_hops(_raw(ttl=64, id=ident), hops) == aged


def test_hops_change_only_the_hop_limit_of_ipv6() -> None:
    before = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=9, fl=77) / UDP())
    after = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=7, fl=77) / UDP())
    assert matching.after_hops(before, 2) == after


def test_padding_is_cut_and_other_frames_are_none() -> None:
    packet = _raw()
    assert matching.network_packet(bytes(Ether(type=0x0800)) + packet + bytes(9)) == packet
    assert matching.network_packet(bytes(Ether() / ARP())) is None
    assert matching.network_packet(b"runt") is None


def test_equal_packets_are_matched_in_order() -> None:
    one, other = _raw(), _raw(id=6)
    assert matching.match([one, other, one], [one, one, other]) == [[0], [2], [1]]


def test_more_arrivals_than_packets_are_copies() -> None:
    assert matching.match([_raw()], [_raw(), _raw()]) == [[0, 1]]


def test_a_changed_packet_is_matched_by_its_tag() -> None:
    sent = [_raw(id=number) for number in (1, 2, 3)]
    changed = _raw(id=2, sport=9, load=b"other")
    assert matching.match(sent, [changed, sent[0]]) == [[1], [0], []]


def test_a_packet_whose_tag_changed_is_matched_by_the_rest() -> None:
    sent = [_raw(id=number, load=bytes([number])) for number in (1, 2, 3)]
    arrived = [_raw(id=9, load=bytes([number])) for number in (3, 1)]
    assert matching.match(sent, arrived) == [[1], [], [0]]


def test_strangers_are_matched_with_nothing() -> None:
    stranger = bytes(IP(src="203.0.113.9", dst="203.0.113.8", id=5) / TCP())
    other_version = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2", fl=5) / UDP(dport=53))
    assert matching.match([_raw()], [stranger, other_version]) == [[]]


def test_an_arrival_is_matched_once() -> None:
    sent = [_raw(id=1), _raw(id=1)]
    found = matching.match(sent, [_raw(id=1, sport=9)])
    assert sorted(found) == [[], [0]]


def test_errors_quote_and_other_packets_do_not() -> None:
    inner = _raw()
    error = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / ICMP(type=3, code=3) / inner)
    assert matching.quoted(error) == inner
    inner6 = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP())
    error6 = bytes(IPv6(src="2001:db8::2", dst="2001:db8::1") / ICMPv6DestUnreach() / inner6)
    assert matching.quoted(error6) == inner6
    echo = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / ICMP(type=8) / inner)
    assert matching.quoted(echo) is None
    assert matching.quoted(inner) is None
    assert matching.quoted(error[:35]) is None
