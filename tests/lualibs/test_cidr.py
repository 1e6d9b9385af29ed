"""cidr.lua finds the longest prefix, as a search with the ipaddress module does."""

from __future__ import annotations

import ipaddress
import random
import re

import pytest

from bridge.lunatik import LUA_ROOT
from bridge.testing import sanitizers

pytestmark = pytest.mark.kernel

MANY = sanitizers.fewer(10_000)

SET = """
local cidr = require "cidr"
local set = cidr.new()
local verbs = {
  add = function(p, v) return set:add(p, v) end,
  name = function(p) return set:add(p, p) end,
  remove = function(p) return set:remove(p) end,
  find = function(a) return set:lookup(a) end,
  size = function() return #set end,
  all = function(texts)
    for prefix in texts:gmatch("%S+") do assert(set:add(prefix)) end
  end,
}
function work(first, verb, ...) return verbs[verb](first, ...) end
"""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(random: random.Random, size: int, lengths: range) -> Network:
    base = b"\x0a\x01\x02" if size == 4 else b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0"
    kept = random.randrange(len(base) + 1)
    packed = base[:kept] + random.randbytes(size - kept)
    return ipaddress.ip_network((packed, random.choice(lengths)), strict=False)


def _near(random: random.Random, network: Network) -> bytes:
    """An address in the network, or one bit away from it."""
    spread = random.getrandbits(network.max_prefixlen - network.prefixlen or 1)
    integer = int(network.network_address) | spread & int(network.hostmask)
    if random.random() < 0.5:
        integer ^= 1 << random.randrange(network.max_prefixlen)
    return integer.to_bytes(network.max_prefixlen // 8, "big")


def _longest(networks: dict[tuple[int, int], Network], packed: bytes) -> Network | None:
    size = len(packed) * 8
    for length in range(size, -1, -1):
        masked = int.from_bytes(packed, "big") >> (size - length) << (size - length)
        if (masked, length) in networks:
            return networks[masked, length]
    return None


@pytest.mark.parametrize("verb", ["add", "name"])
@pytest.mark.parametrize("size", [4, 16])
def test_the_longest_prefix_is_found_in_random_sets(lua, size, verb):
    chosen = random.Random(size)
    networks = [_network(chosen, size, range(size * 8 + 1)) for _ in range(300)]
    model = {(int(one.network_address), one.prefixlen): one for one in networks}
    work = lua(SET)
    assert work.each(map(str, networks), verb) == [True] * len(networks)
    assert work(None, "size") == len(model)
    addresses = [_near(chosen, chosen.choice(networks)) for _ in range(800)]
    addresses += [chosen.randbytes(size) for _ in range(100)]
    found = [_longest(model, one) for one in addresses]
    assert len(set(found)) > 50
    expected = [
        one and [str(one).encode() if verb == "name" else True, one.prefixlen] for one in found
    ]
    assert work.each(addresses, "find") == expected
    if size == 4:
        integers = [int.from_bytes(one, "big") for one in addresses]
        assert work.each(integers, "find") == expected


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(4, range(24, 33)), (4, range(32, 33)), (16, range(48, 65)), (16, range(128, 129))],
)
def test_ten_thousand_prefixes_fit_into_a_runtime(lua, size, lengths):
    chosen = random.Random(10_000)
    networks: dict[tuple[int, int], Network] = {}
    while len(networks) < MANY:
        base = b"" if size == 4 else b"\x20\x01\x0d\xb8"
        packed = base + chosen.randbytes(size - len(base))
        one = ipaddress.ip_network((packed, chosen.choice(lengths)), strict=False)
        networks[int(one.network_address), one.prefixlen] = one
    work = lua(SET)
    texts = [str(one) for one in networks.values()]
    for start in range(0, MANY, 25):
        assert work(" ".join(texts[start : start + 25]), "all") is None
    assert work(None, "size") == MANY
    assert work.runtime.info().memory_bytes < 1024 * 1024
    addresses = [
        _near(chosen, one)
        for one in chosen.sample(list(networks.values()), sanitizers.fewer(200))
    ]
    found = [_longest(networks, one) for one in addresses]
    assert work.each(addresses, "find") == [one and [True, one.prefixlen] for one in found]


def test_prefixes_can_be_removed_and_given_other_values(lua):
    work = lua(SET)
    assert work("10.0.0.0/8", "add", "outer") is True
    assert work("10.1.0.0/16", "add", "inner") is True
    assert work(b"\x0a\x01\0\x01", "find") == [b"inner", 16]
    assert work("10.1.0.0/16", "add", False) is True
    assert work(0x0A010001, "find") == [False, 16]
    assert work(None, "size") == 2
    assert work("10.1.0.0/16", "remove") is True
    assert work("10.1.0.0/16", "remove") is False
    assert work("10.2.0.0/15", "remove") is False
    assert work(0x0A010001, "find") == [b"outer", 8]
    assert work(None, "size") == 1
    assert work("10.0.0.0/8", "remove") is True
    assert work(0x0A010001, "find") is None


@pytest.mark.parametrize("values", [(True, True), (True, b"b"), (b"a", True), (b"a", b"b")])
def test_addresses_that_mix_to_the_same_are_told_apart(lua, values):
    odd = int(re.search(r"ODD <const> = (0x\w+)", (LUA_ROOT / "cidr.lua").read_text())[1], 16)
    one, other, low = 0x20010DB8 << 32, 0x20010DB9 << 32, 5
    mixed = (one * odd ^ low) % 2**64
    pairs = [(one, low), (other, (other * odd ^ mixed) % 2**64)]
    packed = [(high << 64 | low).to_bytes(16, "big") for high, low in pairs]
    texts = [str(ipaddress.ip_address(address)) for address in packed]
    work = lua(SET)
    for _ in range(2):
        for text, value in zip(texts, values, strict=True):
            assert work(text, "add", value) is True
        assert work(None, "size") == 2
        assert work.each(packed, "find") == [[value, 128] for value in values]
        assert work(texts[0], "remove") is True
        assert work.each(packed, "find") == [None, [values[1], 128]]
    assert work(texts[1], "remove") is True
    assert work(texts[1], "remove") is False
    assert work(None, "size") == 0


def test_an_address_alone_is_a_prefix(lua):
    work = lua(SET)
    assert work("2001:db8::1", "add") is True
    assert work("192.0.2.1", "add") is True
    assert work(b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01", "find") == [True, 128]
    assert work(b"\x20\x01\x0d\xb8" + bytes(11) + b"\x02", "find") is None
    assert work(bytes([192, 0, 2, 1]), "find") == [True, 32]


def test_the_families_are_apart(lua):
    work = lua(SET)
    assert work("0.0.0.0/0", "add", "four") is True
    assert work(bytes(10) + b"\xff\xff\x0a\0\0\x01", "find") is None
    assert work("::/0", "add", "six") is True
    assert work(bytes(16), "find") == [b"six", 0]
    assert work(bytes(4), "find") == [b"four", 0]


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ("10.0.0.1/8", "10.0.0.1/8 has bits set beyond its length"),
        ("2001:db8::1/64", "2001:db8::1/64 has bits set beyond its length"),
        ("2001:db8::1/127", "2001:db8::1/127 has bits set beyond its length"),
        ("1::/15", "1::/15 has bits set beyond its length"),
        ("10.0.0.0/33", "10.0.0.0/33: the length is at most 32"),
        ("::/129", "::/129: the length is at most 128"),
        ("10.0.0.0/255.0.0.0", '"10.0.0.0/255.0.0.0" is no IPv4 or IPv6 address'),
        ("10.0.0.0/-1", '"10.0.0.0/-1" is no IPv4 or IPv6 address'),
        ("10.0.0/8", '"10.0.0" is no IPv4 or IPv6 address'),
        ("/8", '"" is no IPv4 or IPv6 address'),
        ("", '"" is no IPv4 or IPv6 address'),
        (10, "a prefix is a text, not a number"),
        (None, "a prefix is a text, not a nil"),
    ],
)
def test_a_malformed_prefix_is_refused_with_a_reason(lua, prefix, reason):
    work = lua(SET)
    assert work(prefix, "add") == [None, reason.encode()]
    assert work(prefix, "remove") == [None, reason.encode()]
    assert work(None, "size") == 0


def test_what_is_no_address_is_not_found_with_a_reason(lua):
    work = lua(SET)
    work("0.0.0.0/0", "add")
    assert work(b"\0" * 5, "find") == [None, b"an address has 4 or 16 bytes, not 5"]
    assert work(1 << 32, "find") == [None, b"an IPv4 address has 32 bits"]
    assert work(-1, "find") == [None, b"an IPv4 address has 32 bits"]


def test_a_new_set_refuses_a_malformed_prefix(lua):
    work = lua("""
        local cidr = require "cidr"
        function work(...) return pcall(cidr.new, {...}) end
    """)
    assert work("10.0.0.0/8", "10.0.0.0/9")[0] is True
    assert work("10.0.0.0/8", "10.0.0.0/99") == [
        False,
        b"10.0.0.0/99: the length is at most 32",
    ]
