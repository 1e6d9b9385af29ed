"""Reading capture files, and telling which of their packets can be sent again.

Sources: the pcap and pcapng drafts (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng);
link types: www.tcpdump.org/linktypes.html; the cooked headers of Linux there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import UsageError

MTU = 1500

_ETHERNET, _COOKED, _COOKED_2 = 1, 113, 276
_RAW = {12, 14, 101, 228, 229}
# Offsets of the EtherType and of what it is the type of.
_HEADERS = {_ETHERNET: (12, 14), _COOKED: (14, 16), _COOKED_2: (0, 20)}
_VERSIONS = {0x0800: 4, 0x86DD: 6}
_OTHERS = {
    0x0806: "ARP",
    0x8100: "a VLAN tag",
    0x88A8: "a VLAN tag",
    0x8847: "MPLS",
    0x8863: "PPPoE",
    0x8864: "PPPoE",
    0x88CC: "LLDP",
}
_SMALLEST = {4: 20, 6: 40}


@dataclass(frozen=True, slots=True)
class Record:
    """A packet of a capture file, by its number there (from 1), as other tools count.

    ``time_s`` is when it was captured, in seconds since 1970, None where the file does
    not say. ``packet`` begins with the IP header; it is None where there is nothing that
    can be sent, and ``reason`` says why.
    """

    number: int
    time_s: float | None
    summary: str
    packet: bytes | None
    reason: str | None = None


def read(path: str | Path) -> list[Record]:
    """Read a pcap or pcapng file, also a gzipped one.

    Raises UsageError where it is none or cannot be read.
    """
    # It takes a second to import.
    from scapy.error import Scapy_Exception  # noqa: PLC0415
    from scapy.utils import RawPcapReader  # noqa: PLC0415

    try:
        # Scapy closes only the files of captures, so this one is closed here.
        with Path(path).open("rb") as file, RawPcapReader(file) as reader:
            return [
                _record(number, data, *_facts(reader, meta))
                for number, (data, meta) in enumerate(_each(reader), start=1)
            ]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except Scapy_Exception as error:
        raise UsageError(
            f"{path} is no capture file: {error}",
            cure="give a file in pcap or pcapng form, as tcpdump -w and Wireshark write",
        ) from error


def _each(reader: Any) -> Iterator[tuple[bytes, Any]]:
    yield from reader


def _facts(reader: Any, meta: Any) -> tuple[int, float | None, int]:
    """Return link type, time in seconds and size on the wire of a packet."""
    if not hasattr(meta, "linktype"):
        fraction = 1e-9 if reader.nano else 1e-6
        return reader.linktype, meta.sec + meta.usec * fraction, meta.wirelen
    if meta.tshigh is None:
        return meta.linktype, None, meta.wirelen
    return meta.linktype, ((meta.tshigh << 32) + meta.tslow) / meta.tsresol, meta.wirelen


def _record(
    number: int, data: bytes, link: int, time_s: float | None, wire_bytes: int
) -> Record:
    packet, reason = extract(data, link, wire_bytes)
    text = summary(_read(packet)) if packet else f"{wire_bytes} bytes"
    return Record(number, time_s, text, None if reason else packet, reason)


def extract(data: bytes, link: int, wire_bytes: int) -> tuple[bytes | None, str | None]:
    """Return the IP packet in a frame, and why it cannot be sent again, if so."""
    if link in _RAW:
        version, packet = (data[0] >> 4 if data else 0), data
    elif link in _HEADERS:
        place, start = _HEADERS[link]
        ethertype = int.from_bytes(data[place : place + 2], "big")
        if ethertype not in _VERSIONS:
            return None, f"not IP but {_OTHERS.get(ethertype, f'EtherType {ethertype:#06x}')}"
        version, packet = _VERSIONS[ethertype], data[start:]
    else:
        return None, f"link type {link}, which is not read here"
    if version not in _SMALLEST or len(packet) < _SMALLEST[version]:
        return None, "no IP header"
    if packet[0] >> 4 != version:
        return None, f"an IP header of version {packet[0] >> 4} where {version} is announced"
    return _whole(packet, version, len(data), wire_bytes)


def _whole(
    packet: bytes, version: int, captured_bytes: int, wire_bytes: int
) -> tuple[bytes | None, str | None]:
    """Return the packet without padding, and why it is not all there or too much."""
    field = int.from_bytes(packet[2:4] if version == 4 else packet[4:6], "big")
    size = field if version == 4 else field + _SMALLEST[6]
    # A sender that leaves segmentation to its device writes no length.
    if field == 0 and wire_bytes > MTU:
        return packet, f"{wire_bytes:,} bytes yet to be segmented, more than links carry"
    if size < _SMALLEST[version]:
        return packet, f"its IP header claims {size} bytes"
    if size > len(packet):
        return packet, (
            f"cut off: {captured_bytes:,} of {wire_bytes:,} bytes were captured"
            if captured_bytes < wire_bytes
            else f"its IP header claims {size:,} bytes, of which {len(packet):,} are there"
        )
    if size > MTU:
        return packet[:size], f"{size:,} bytes, more than the {MTU:,} that links carry"
    return packet[:size], None


def summary(packet: Any) -> str:
    """Return scapy's line about a packet, with numbers for ports on every machine."""
    from scapy.config import conf  # noqa: PLC0415 (slow to import)
    from scapy.layers.inet import TCP, UDP  # noqa: PLC0415

    ports = (TCP.sport, TCP.dport, UDP.sport, UDP.dport)
    conf.noenum.add(*ports)
    try:
        text: str = packet.summary()
    finally:
        conf.noenum.remove(*ports)
    return text


def _read(packet: bytes) -> Any:
    from scapy.layers import dns, inet, inet6  # noqa: F401, PLC0415 (dns: to be recognised)

    return inet.IP(packet) if packet[0] >> 4 == 4 else inet6.IPv6(packet)
