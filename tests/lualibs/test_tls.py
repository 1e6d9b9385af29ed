"""tls.lua reads what OpenSSL says, and refuses everything that is cut off or lies."""

from __future__ import annotations

import random

import pytest

from bridge.testing import sanitizers

pytestmark = pytest.mark.kernel

WORK = """
local tls = require "tls"
local works = {
  sni = function(bytes) return tls.sni(bytes) end,
  partial = function(bytes) return tls.sni(bytes, 0, true) end,
  after = function(bytes) return tls.sni("xyz" .. bytes, 3) end,
  hello = function(bytes) return tls.client_hello(bytes) end,
  version = function(number) return tls.version(number) end,
}
function work(first, what) return works[what](first) end
"""
TLS12, TLS13 = "TLSv1_2", "TLSv1_3"
HEADER, HANDSHAKE_HEADER = 5, 4
LIES = b"a length reaches outside what it is in"


def _thinned(cases: list[bytes]) -> list[bytes]:
    """All of them, some where each takes several times as long."""
    return cases[:: len(cases) // sanitizers.fewer(len(cases))]


def _vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width, "big") + content


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _vector(2, content)


def _name(name: bytes, kind: int = 0) -> bytes:
    return _extension(0, _vector(2, bytes([kind]) + _vector(2, name)))


def _made(*extensions: bytes, ciphers: bytes = b"\x13\x01") -> bytes:
    """A record with a ClientHello of these extensions."""
    body = b"\3\3" + bytes(32) + _vector(1, b"") + _vector(2, ciphers) + _vector(1, b"\0")
    if extensions:
        body += _vector(2, b"".join(extensions))
    return b"\x16\3\1" + _vector(2, b"\1" + _vector(3, body))


@pytest.mark.parametrize("newest", [TLS12, TLS13])
@pytest.mark.parametrize("name", ["example.com", "WWW.Example.COM", "a" * 63 + ".example"])
def test_the_name_that_openssl_sends_is_read(lua, client_hello, name, newest):
    sent = client_hello(name, newest=newest)
    work = lua(WORK)
    for how in ("sni", "partial", "after"):
        assert work(sent, how) == name.lower().encode()


def test_the_fields_that_openssl_sends_are_read(lua, client_hello):
    work = lua(WORK)
    both = work(client_hello("one.example", ["h2", "http/1.1"]), "hello")
    assert both == {
        "server_name": b"one.example",
        "alpn": [b"h2", b"http/1.1"],
        "version": 0x0304,
        "legacy_version": 0x0303,
        "record_version": 0x0301,
    }
    older = work(client_hello(None, newest=TLS12), "hello")
    assert older == {"version": 0x0303, "legacy_version": 0x0303, "record_version": 0x0301}
    assert work(client_hello(None), "sni") == [None, b"no server name"]


@pytest.mark.parametrize("newest", [TLS12, TLS13])
def test_every_truncation_is_refused_with_a_reason(lua, client_hello, newest):
    sent = client_hello("cut.example", ["h2", "http/1.1"], newest)
    cut = _thinned([sent[:size] for size in range(len(sent))])
    work = lua(WORK)
    for how in ("sni", "hello"):
        assert set(map(tuple, work.each(cut, how))) == {(None, b"truncated ClientHello")}


def test_a_partial_hello_is_enough_when_the_name_is_there(lua, client_hello):
    sent = client_hello("cut.example")
    end = sent.index(b"cut.example") + len(b"cut.example")
    found = lua(WORK).each([sent[:size] for size in range(len(sent) + 1)], "partial")
    assert found[:end] == [[None, b"truncated ClientHello"]] * end
    assert found[end:] == [b"cut.example"] * (len(sent) + 1 - end)


def _without_extensions(body: bytes) -> int:
    """The size of a ClientHello's body up to its extensions."""
    end = 34
    for width in (1, 2, 1):
        end += width + int.from_bytes(body[end : end + width], "big")
    return end


def test_a_hello_shorter_than_its_contents_is_refused(lua, client_hello):
    body = client_hello("cut.example", ["h2"])[HEADER + HANDSHAKE_HEADER :]
    bare = _without_extensions(body)

    def record(size: int) -> bytes:
        return b"\x16\3\1" + _vector(2, b"\1" + _vector(3, body[:size]))

    cut = _thinned([record(size) for size in range(len(body)) if size != bare])
    work = lua(WORK)
    for how in ("sni", "partial", "hello"):
        # A ClientHello may end where its extensions would begin.
        complete = work(record(bare), how)
        assert complete == [None, b"no server name"] or complete["version"] == 0x0303
        assert work.each(cut, how) == [[None, LIES]] * len(cut)


def test_a_hello_over_several_records_is_refused(lua, client_hello):
    sent = client_hello("split.example")
    message = sent[HEADER:]
    for at in (2, HANDSHAKE_HEADER, 100):
        split = b"\x16\3\1" + _vector(2, message[:at]) + b"\x16\3\1" + _vector(2, message[at:])
        for how in ("sni", "partial", "hello"):
            assert lua(WORK)(split, how) == [None, b"the ClientHello spans several records"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", b"truncated ClientHello"),
        (b"GET / HTTP/1.1\r\n\r\n", b"no TLS handshake record"),
        (b"\x16\2" + bytes(40), b"no TLS handshake record"),
        (b"\x15\3\3\0\2\2\x28" + bytes(9), b"no TLS handshake record"),
        (b"\x16\3\3\x40\x01\1" + bytes(9), b"a TLS record of more than 16,384 bytes"),
        (b"\x16\3\3\x40\x00\1" + bytes(9), b"truncated ClientHello"),
        (b"\x16\3\3\0\x08\2\0\0\4abcd", b"no ClientHello"),
        (_made(), b"no server name"),
        (_made(_extension(0, b"")), LIES),
        (_made(_extension(0, b"\0\0")), b"malformed server name"),
        (_made(_name(b"a.example", kind=1)), b"the server name is no host name"),
        (_made(_name(b"")), b"the server name is no host name"),
        (_made(_name(b".")), b"the server name is no host name"),
        (_made(_name(b"a\0b.example")), b"the server name is no host name"),
        (_made(_name(b"a b")), b"the server name is no host name"),
        (_made(_name(b"a" * 256)), b"a server name of more than 255 bytes"),
        (_made(_name(b"a"), _name(b"b")), b"an extension comes twice"),
        (
            _made(_extension(0, _vector(2, 2 * (b"\0" + _vector(2, b"a"))))),
            b"more than one server name",
        ),
        (_made(_extension(0, _vector(2, b"\0\0\1a") + b"x")), b"malformed server name"),
        (_made(_extension(0, _vector(2, b"\0\0\2a"))), LIES),
        (_made(*[_extension(99, b"")] * 101), b"more than 100 extensions"),
        (_made(_extension(9, b"")[:3]), LIES),
        (_made(_extension(9, b"") + b"\0\x0a\0\1"), LIES),
    ],
)
def test_a_malformed_hello_is_refused_with_a_reason(lua, sent, reason):
    assert lua(WORK)(sent, "sni") == [None, reason]


@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        (_extension(16, b"\0\0"), b"malformed protocol list"),
        (_extension(16, _vector(2, b"\2h2") + b"x"), b"malformed protocol list"),
        (_extension(16, _vector(2, b"\5h2")), LIES),
        (_extension(16, _vector(2, b"\1x" * 33)), b"more than 32 protocols"),
        (_extension(43, b"\1\3"), b"malformed version list"),
        (_extension(43, b"\2\3\4\0"), b"malformed version list"),
        (_extension(43, _vector(1, b"\3\4" * 65)), b"more than 64 versions"),
        (_extension(43, _vector(1, b"\x1a\x1a")), b"no version of TLS is offered"),
        (_extension(43, _vector(1, b"\3\4")) * 2, b"an extension comes twice"),
    ],
)
def test_a_malformed_field_is_refused_with_a_reason(lua, extension, reason):
    work = lua(WORK)
    assert work(_made(_name(b"a"), extension), "hello") == [None, reason]
    assert work(_made(_name(b"a"), extension), "sni") == b"a"


def test_random_versions_are_ignored_and_final_dots_are_cut(lua):
    versions = _extension(43, _vector(1, b"\x1a\x1a\3\3\3\4\xfa\xfa"))
    hello = lua(WORK)(_made(_extension(0x2A2A, b""), versions, _name(b"A.example.")), "hello")
    assert hello["version"] == 0x0304
    assert hello["server_name"] == b"a.example"


def test_versions_have_names(lua):
    numbers = [0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0x7F1C]
    names = [b"SSL 3.0", b"TLS 1.0", b"TLS 1.1", b"TLS 1.2", b"TLS 1.3", b"0x7f1c"]
    assert lua(WORK).each(numbers, "version") == names


def test_damaged_hellos_never_raise_an_error(lua, client_hello):
    chosen = random.Random(8446)
    sent = client_hello("fuzz.example", ["h2", "http/1.1"])
    damaged = []
    for _ in range(600):
        one = bytearray(sent[: chosen.choice((len(sent), chosen.randrange(len(sent))))])
        for _ in range(chosen.randrange(1, 4) if one else 0):
            one[chosen.randrange(len(one))] = chosen.choice(
                (0, 1, 0x7F, 0xFF, chosen.randrange(256))
            )
        damaged.append(bytes(one))
    work = lua(WORK)
    for how in ("sni", "partial", "hello"):
        results = work.each(damaged, how)
        refused = [one for one in results if isinstance(one, list)]
        assert all(one[0] is None and one[1] for one in refused)
        assert 50 < len(refused) < len(results)


def test_the_costliest_hellos_fit_a_callback(lua):
    filled = [_extension(99, b"")] * 97
    costly = _made(
        *filled,
        _name(b"a" * 255),
        _extension(16, _vector(2, b"\1x" * 32)),
        _extension(43, _vector(1, b"\3\4" * 64)),
    )
    largest = _made(*[_extension(99, b"")] * 4000)
    work = lua(WORK)
    assert len(work(costly, "hello")["alpn"]) == 32
    for how in ("sni", "partial", "hello"):
        assert work(largest, how) == [None, b"more than 100 extensions"]
