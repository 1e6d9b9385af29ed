"""Capture files are read as they are, and what cannot be sent again is named."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge import capture, pcap
from bridge.errors import UsageError

ETHERNET, RAW, COOKED, COOKED_2, RAW_4, LOOPBACK = 1, 101, 113, 276, 228, 0


def udp(size: int = 8, version: int = 4) -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    return bytes((IP() if version == 4 else IPv6()) / UDP(dport=53) / (b"x" * (size - 8)))


def framed(packet: bytes, ethertype: int = 0x0800) -> bytes:
    return bytes(12) + ethertype.to_bytes(2, "big") + packet


def extract(
    data: bytes, link: int = ETHERNET, more: int = 0
) -> tuple[bytes | None, str | None]:
    return pcap.extract(data, link, len(data) + more)


# ---- frames -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_the_packet_is_found_behind_each_kind_of_header(version: int) -> None:
    packet = udp(version=version)
    ethertype = {4: 0x0800, 6: 0x86DD}[version]
    kind = ethertype.to_bytes(2, "big")
    for link, frame in (
        (ETHERNET, framed(packet, ethertype)),
        (COOKED, bytes(14) + kind + packet),
        (COOKED_2, kind + bytes(18) + packet),
        (RAW, packet),
    ):
        assert extract(frame, link) == (packet, None)


def test_padding_is_cut() -> None:
    assert extract(framed(udp() + bytes(18))) == (udp(), None)


@pytest.mark.parametrize(
    ("data", "link", "reason"),
    [
        (framed(bytes(28), 0x0806), ETHERNET, "not IP but ARP"),
        (framed(bytes(28), 0x8100), ETHERNET, "a VLAN tag"),
        (framed(bytes(28), 0x1234), ETHERNET, "EtherType 0x1234"),
        (b"", ETHERNET, "EtherType 0x0000"),
        (b"", RAW, "no IP header"),
        (udp()[:19], RAW_4, "no IP header"),
        (b"\x20" + udp()[1:], RAW, "no IP header"),
        (framed(udp(version=6)), ETHERNET, "version 6 where 4"),
        (udp(), LOOPBACK, "link type 0"),
        (udp()[:2] + b"\0\5" + udp()[4:], RAW, "claims 5 bytes"),
        (udp()[:2] + b"\0\xff" + udp()[4:], RAW, "claims 255 bytes, of which 28"),
        (udp(1481), RAW, "1,501 bytes, more than the 1,500"),
        (udp()[:2] + b"\0\0" + udp(9000)[4:], RAW, "yet to be segmented"),
    ],
)
def test_what_cannot_be_sent_has_a_reason(data: bytes, link: int, reason: str) -> None:
    told = extract(data, link)[1]
    assert told is not None
    assert reason in told


def test_the_largest_packet_can_be_sent() -> None:
    assert extract(udp(1480), RAW) == (udp(1480), None)


def test_a_packet_that_the_capture_cut_off_is_told_from_one_that_lies() -> None:
    told = extract(framed(udp(100))[:80], more=54)[1]
    assert told == "cut off: 80 of 134 bytes were captured"


# ---- files --------------------------------------------------------------------------


Make = Callable[..., Path]


@pytest.fixture
def pcap_file(tmp_path: Path) -> Make:
    """Write a pcap file of frames, a millisecond apart."""

    def make(frames: list[bytes], link: int = ETHERNET, *, nano: bool = False) -> Path:
        magic, unit = (0xA1B23C4D, 10**6) if nano else (0xA1B2C3D4, 10**3)
        data = struct.pack("<IHHIIII", magic, 2, 4, 0, 0, 65535, link)
        for number, frame in enumerate(frames):
            size = len(frame)
            data += struct.pack("<IIII", 1_700_000_000, number * unit, size, size) + frame
        path = tmp_path / "capture.pcap"
        path.write_bytes(data)
        return path

    return make


@pytest.mark.parametrize("nano", [False, True])
def test_a_pcap_file_is_read_in_its_order(pcap_file: Make, nano: bool) -> None:
    frames = [framed(udp(20)), framed(bytes(28), 0x0806), framed(udp(30))]
    first, second, third = pcap.read(pcap_file(frames, nano=nano))
    assert [one.number for one in (first, second, third)] == [1, 2, 3]
    assert (first.packet, second.packet, third.packet) == (udp(20), None, udp(30))
    assert second.reason == "not IP but ARP"
    assert "UDP" in first.summary
    assert second.summary == "42 bytes"
    assert first.time_s == 1_700_000_000
    assert third.time_s == pytest.approx(1_700_000_000.002, abs=1e-6)


def test_a_raw_and_a_gzipped_file_are_read(pcap_file: Make, tmp_path: Path) -> None:
    path = pcap_file([udp(), udp(version=6)], RAW)
    zipped = tmp_path / "capture.pcap.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    for one in (path, zipped):
        assert [record.packet for record in pcap.read(one)] == [udp(), udp(version=6)]


def test_a_pcapng_file_is_read(tmp_path: Path) -> None:
    frames = [
        capture.Frame(1_700_000_000_000_000_000, "client", "eth0", framed(udp(20))),
        capture.Frame(1_700_000_000_500_000_000, "server", "eth0", framed(udp(30))),
    ]
    path = tmp_path / "capture.pcapng"
    capture.save(path, frames)
    first, second = pcap.read(path)
    assert (first.packet, second.packet) == (udp(20), udp(30))
    assert (first.time_s, second.time_s) == (1_700_000_000, 1_700_000_000.5)


def test_an_oversized_packet_keeps_its_summary(pcap_file: Make) -> None:
    (record,) = pcap.read(pcap_file([udp(3000)], RAW))
    assert record.packet is None
    assert "UDP" in record.summary


def test_a_file_that_ends_in_a_packet_tells_of_it(pcap_file: Make) -> None:
    path = pcap_file([framed(udp(20)), framed(udp(100))])
    path.write_bytes(path.read_bytes()[:-50])
    first, second = pcap.read(path)
    assert first.packet == udp(20)
    assert second.reason is not None


def test_an_empty_capture_has_no_packets(pcap_file: Make) -> None:
    assert pcap.read(pcap_file([])) == []


def test_what_is_no_capture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.pcap"
    for data in (b"", b"xy", b"this is no capture file at all", b"\xd4\xc3\xb2\xa1\2\0"):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="no capture file"):
            pcap.read(path)
    for wrong in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            pcap.read(wrong)
