"""address.lua reads and writes addresses as the C library and RFC 5952 do."""

from __future__ import annotations

import ipaddress
import random
import socket

import pytest

pytestmark = pytest.mark.kernel

TEXT = "local address = require 'address' function work(b) return address.text(b) end"
BYTES = "local address = require 'address' function work(t) return address.bytes(t) end"


def _expected_bytes(text: str) -> bytes | None:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_pton(family, text)
    except OSError:
        return None


def _expected_text(packed: bytes) -> bytes:
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return (f"::ffff:{mapped}" if mapped else str(address)).encode()


def _sparse(random: random.Random) -> bytes:
    """16 bytes with many zero groups, where compression has choices."""
    groups = (random.choice((0, 0, 0, 1, random.randrange(65536))) for _ in range(8))
    return b"".join(group.to_bytes(2, "big") for group in groups)


def test_addresses_are_written_as_rfc_5952_says(lua):
    chosen = random.Random(5952)
    packed = [_sparse(chosen) for _ in range(400)]
    packed += [chosen.randbytes(4) for _ in range(100)]
    packed += [bytes(10) + b"\xff\xff" + chosen.randbytes(4), bytes(16), b"\xff" * 16]
    assert lua(TEXT).each(packed) == [_expected_text(one) for one in packed]


@pytest.mark.parametrize("size", [0, 3, 5, 15, 17])
def test_other_sizes_have_no_text(lua, size):
    reason = f"an IP address has 4 or 16 bytes, not {size}".encode()
    assert lua(TEXT)(bytes(size)) == [None, reason]


def _mutated(random: random.Random) -> str:
    text = random.choice(
        ["192.0.2.1", "2001:db8::1", "::", "::ffff:192.0.2.1", "1:2:3:4:5:6:7:8", "fe80::"]
    )
    for _ in range(random.randrange(4)):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice("0:.1fg/% ") + text[at + random.randrange(2) :]
    return text


def test_texts_are_taken_and_refused_as_by_inet_pton(lua):
    chosen = random.Random(4291)
    texts = [_mutated(chosen) for _ in range(1500)]
    texts += ["1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::2::3", "1:2:3:4:5:6:7:8::", "", ":"]
    texts += ["1.2.3.4.5", "1.2.3", "01.2.3.4", "256.1.1.1", "1:2:3:4:5:6:1.2.3.4", "x" * 100]
    texts += ["ffff:" * 6 + "255.255.255.255", "1.2.3." + "9" * 20]
    found = [one[0] if isinstance(one, list) else one for one in lua(BYTES).each(texts)]
    expected = [_expected_bytes(text) for text in texts]
    assert dict(zip(texts, found, strict=True)) == dict(zip(texts, expected, strict=True))
    assert 100 < expected.count(None) < len(texts) - 100


def test_a_refusal_names_what_is_refused(lua):
    assert lua(BYTES).each(["1.2.3.x", 5, None]) == [
        [None, b'"1.2.3.x" is no IPv4 or IPv6 address'],
        [None, b"an address is a text, not a number"],
        [None, b"an address is a text, not a nil"],
    ]


def test_ethernet_addresses_are_written(lua):
    work = lua("local address = require 'address' function work(b) return address.mac(b) end")
    assert work(b"\x02\0\x5e\x10\0\x01") == b"02:00:5e:10:00:01"
    assert work(b"\0" * 5) == [None, b"an Ethernet address has 6 bytes, not 5"]
