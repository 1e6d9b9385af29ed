"""dns.lua reads messages as scapy makes them, and refuses what loops, lies or is cut."""

from __future__ import annotations

import ipaddress
import random
import struct

import pytest

from bridge.testing import sanitizers

pytestmark = pytest.mark.kernel

WORK = """
local dns = require "dns"
local works = {
  question = dns.question, header = dns.header, answers = dns.answers,
  name = function(message, offset) return dns.name(message, offset or 12) end,
  record = function(message, offset) return dns.record(message, offset or 12) end,
  parent = dns.parent, normal = dns.normal,
  listed = function(name)
    return dns.listed(name, { ["bad.example"] = true, example2 = true, ["c.d.e"] = true })
  end,
}
function work(first, what, ...) return works[what](first, ...) end
"""
QUERY = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0)
TRUNCATED = b"truncated DNS message"


def _response(answers: int, rest: bytes, *, questions: int = 0) -> bytes:
    return struct.pack(">6H", 7, 0x8180, questions, answers, 0, 0) + rest


def _record(name: bytes, kind: int, data: bytes, ttl: int = 60) -> bytes:
    return name + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def _labels(*labels: bytes) -> bytes:
    return b"".join(bytes([len(one)]) + one for one in labels) + b"\0"


def _answered() -> bytes:
    """A response with an answer of every kind that scapy makes, compressed."""
    from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRRSRV, dns_compress

    answers = [
        DNSRR(rrname="www.Example.com", type="CNAME", rdata="host.example.com", ttl=300),
        DNSRR(rrname="host.example.com", type="A", rdata="192.0.2.1", ttl=5),
        DNSRR(rrname="host.example.com", type="AAAA", rdata="2001:db8::1"),
        DNSRR(rrname="example.com", type="NS", rdata="ns.example.com"),
        DNSRR(rrname="1.2.0.192.in-addr.arpa", type="PTR", rdata="host.example.com"),
        DNSRRMX(rrname="example.com", type="MX", preference=10, exchange="mx.example.com"),
        DNSRRSRV(rrname="_sip._udp.example.com", priority=1, weight=2, port=5060,
                 target="sip.example.com"),
        DNSRR(rrname="example.com", type="TXT", rdata=[b"v=spf1 ", b"-all"]),
    ]  # fmt: skip
    # By way of bytes, since releases of scapy differ in how they take several answers.
    question = bytes(DNSQR(qname="www.Example.com"))
    plain = _response(len(answers), question + b"".join(map(bytes, answers)), questions=1)
    packed = bytes(dns_compress(DNS(plain)))
    assert b"\xc0" in packed
    return packed


def test_a_question_is_read(lua):
    work = lua(WORK)
    message = QUERY + _labels(b"WWW", b"Example") + struct.pack(">HH", 28, 1)
    assert work(message, "question") == [b"www.example", 28, 1, len(message)]
    assert work(QUERY + b"\0\0\2\0\1", "question") == [b"", 2, 1, 17]


def test_a_header_is_read(lua):
    work = lua(WORK)
    fields = {
        "id": 0xBEEF, "response": True, "opcode": 2, "authoritative": True,
        "truncated": False, "recursion_desired": True, "recursion_available": False,
        "authentic_data": True, "checking_disabled": False, "rcode": 3,
        "questions": 1, "answers": 2, "authorities": 3, "additionals": 4,
    }  # fmt: skip
    message = struct.pack(
        ">6H", 0xBEEF, 0x8000 | 2 << 11 | 0x400 | 0x100 | 0x20 | 3, 1, 2, 3, 4
    )
    assert work(message, "header") == fields
    opposite = struct.pack(">6H", 1, 0x0290, 0, 0, 0, 0)
    read = work(opposite, "header")
    true = {name for name, value in read.items() if value is True}
    assert true == {"truncated", "recursion_available", "checking_disabled"}
    assert work(message[:11], "header") == [None, TRUNCATED]


def test_the_answers_that_scapy_makes_are_read(lua):
    answers = lua(WORK)(_answered(), "answers")
    shown = [(one["name"], one["type"], one["class"], one["value"]) for one in answers]
    assert shown == [
        (b"www.example.com", 5, 1, b"host.example.com"),
        (b"host.example.com", 1, 1, ipaddress.ip_address("192.0.2.1").packed),
        (b"host.example.com", 28, 1, ipaddress.ip_address("2001:db8::1").packed),
        (b"example.com", 2, 1, b"ns.example.com"),
        (b"1.2.0.192.in-addr.arpa", 12, 1, b"host.example.com"),
        (b"example.com", 15, 1, b"mx.example.com"),
        (b"_sip._udp.example.com", 33, 1, b"sip.example.com"),
        (b"example.com", 16, 1, b"v=spf1 -all"),
    ]
    assert [one["ttl"] for one in answers[:2]] == [300, 5]
    assert answers[5]["preference"] == 10
    assert [answers[6][name] for name in ("priority", "weight", "port")] == [1, 2, 5060]
    assert "preference" not in answers[6]


def test_a_record_of_another_type_has_its_bytes(lua):
    message = _response(1, _record(b"\0", 41, b"\1\2\3"))
    record = lua(WORK)(message, "record")
    assert record[0]["value"] == b"\1\2\3"
    assert (record[0]["data"], record[0]["size"], record[0]["next"]) == (23, 3, 26)


def test_the_smallest_records_are_read(lua):
    work = lua(WORK)
    empty = work(_response(1, _record(b"\0", 99, b"")), "answers")
    assert [one["value"] for one in empty] == [b""]
    root = work(_response(1, _record(b"\0", 15, b"\0\7\0")), "answers")
    assert [(one["preference"], one["value"]) for one in root] == [(7, b"")]
    alias = work(_response(1, _record(b"\0", 39, _labels(b"a"))), "answers")
    assert [one["value"] for one in alias] == [b"a"]
    silent = work(_response(1, _record(b"\0", 16, b"")), "answers")
    assert [one["value"] for one in silent] == [b""]


def test_every_truncation_is_refused_with_a_reason(lua):
    message = _answered()
    work = lua(WORK)
    cut = [message[:size] for size in range(len(message))]
    for one in work.each(cut, "answers", together=4):
        assert one == [None, TRUNCATED]
    query = QUERY + _labels(b"www", b"example") + b"\0\1\0\1"
    cut = [query[:size] for size in range(len(query))]
    assert work.each(cut, "question") == [[None, TRUNCATED]] * len(cut)


def test_bytes_that_are_not_plain_are_escaped(lua):
    work = lua(WORK)
    for value in range(256):
        character = bytes([value])
        plain = 0x21 <= value <= 0x7E and character not in b".\\"
        shown = character.lower() if plain else b"\\%03d" % value
        assert (
            work(bytes(12) + _labels(b"a" + character, b"b"), "name")[0] == b"a" + shown + b".b"
        )


LONGEST = [b"a" * 63] * 3 + [b"a" * 61]


@pytest.mark.parametrize(
    ("rest", "result"),
    [
        (_labels(*LONGEST), [b".".join(LONGEST), 267, 4]),
        (_labels(*LONGEST[:3], b"a" * 62), [None, b"a name of more than 255 bytes"]),
        (_labels(*[b"x"] * 127), [b".".join([b"x"] * 127), 267, 127]),
        (b"\xc0\x0c", [None, b"a name's pointer leads forward"]),
        (b"\xc0\x0e\0", [None, b"a name's pointer leads forward"]),
        (b"\1a\xc0\x0c", [None, b"a name's pointer leads forward"]),
        (b"\xff\xff", [None, b"a name's pointer leads forward"]),
        (b"\xc0\x00", [None, b"a name's pointer leads into the header"]),
        (b"\x40", [None, b"a label of an unknown kind"]),
        (b"\x80a", [None, b"a label of an unknown kind"]),
        (b"", [None, TRUNCATED]),
        (b"\xc0", [None, TRUNCATED]),
        (b"\x05abc", [None, TRUNCATED]),
        (b"\x03abc", [None, TRUNCATED]),
    ],
)
def test_a_name_is_read_or_refused_with_a_reason(lua, rest, result):
    assert lua(WORK)(bytes(12) + rest, "name") == result


def test_pointers_lead_back_and_never_round(lua):
    work = lua(WORK)
    message = bytes(12) + _labels(b"b", b"c") + b"\1a\xc0\x0c" + b"\xc0\x11"
    assert work(message, "name", 17) == [b"a.b.c", 21, 4]
    assert work(message, "name", 21) == [b"a.b.c", 23, 5]
    # Each of two names points at the other one.
    around = bytes(12) + b"\1a\xc0\x10" + b"\1b\xc0\x0c"
    assert work(around, "name", 16) == [None, b"a name's pointer leads forward"]
    # A chain of pointers back, each to the one before.
    chain = (
        bytes(12)
        + b"\0\0"
        + b"".join(struct.pack(">H", 0xC000 | 12 + 2 * i) for i in range(500))
    )
    assert work(chain, "name", 12 + 2 * 127) == [b"", 12 + 2 * 128, 127]
    assert work(chain, "name", 12 + 2 * 128) == [None, b"a name of more than 127 pointers"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (QUERY, TRUNCATED),
        (struct.pack(">6H", 7, 0x0100, 0, 0, 0, 0), b"no question"),
        (_response(0, b""), b"a response"),
        (QUERY + b"\xc0\x0c\0\1\0\1", b"a name's pointer leads forward"),
    ],
)
def test_a_message_without_a_question_is_refused_with_a_reason(lua, message, reason):
    assert lua(WORK)(message, "question") == [None, reason]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (QUERY + b"\0\0\1\0\1", b"a query"),
        (_response(65, b""), b"more than 64 answers"),
        (_response(1, b"", questions=2), b"more than one question"),
        (_response(1, _record(b"\0", 1, b"\1\2\3")), b"an address of a wrong size"),
        (_response(1, _record(b"\0", 28, b"\1\2\3\4")), b"an address of a wrong size"),
        (
            _response(1, _record(b"\0", 5, _labels(b"a") + b"x")),
            b"a record's size does not fit its name",
        ),
        (
            _response(1, _record(b"\0", 5, b"\3") + b"abc\0"),
            b"a record's size does not fit its name",
        ),
        (_response(1, _record(b"\0", 99, b"1234")[:-1]), TRUNCATED),
        (_response(1, _record(b"\0", 15, b"\0\1")), b"a mail exchange without a name"),
        (_response(1, _record(b"\0", 33, bytes(6))), b"a service without a name"),
        (_response(1, _record(b"\0", 16, b"\5abc")), b"a text reaches beyond its record"),
        (_response(1, _record(b"\0", 16, bytes(301))), b"more than 300 texts in a record"),
    ],
)
def test_malformed_answers_are_refused_with_a_reason(lua, message, reason):
    assert lua(WORK)(message, "answers") == [None, reason]


def test_no_answers_are_an_empty_list(lua):
    assert lua(WORK)(_response(0, b""), "answers") == {}


def test_the_costliest_responses_fit_a_callback(lua):
    work = lua(WORK)
    long_name = _labels(*[b"x"] * 127)
    # Names that fill the largest datagram, as labels and by pointers.
    many = _response(64, 64 * _record(long_name, 5, long_name))
    assert work(many, "answers") == [None, b"more than 1,000 labels, pointers and texts"]
    pointed = _response(
        64, _record(long_name, 1, b"1234") + 63 * _record(b"\xc0\x0c", 5, b"\xc0\x0c")
    )
    assert work(pointed, "answers") == [None, b"more than 1,000 labels, pointers and texts"]
    chain = _record(
        b"\0", 99, b"".join(struct.pack(">H", 0xC00C + 11 + 2 * i) for i in range(-1, 126))
    )
    chained = _response(64, chain + 63 * _record(b"\xc1\x11", 2, b"\xc1\x11"))
    assert work(chained, "answers") == [None, b"more than 1,000 labels, pointers and texts"]
    texts = _response(64, 64 * _record(b"\0", 16, bytes(300)))
    assert work(texts, "answers") == [None, b"more than 1,000 labels, pointers and texts"]
    assert len(work(_response(64, 64 * _record(b"\0", 1, b"1234")), "answers")) == 64
    just = [300, 300, 300, 100]
    texts = b"".join(_record(b"\0", 16, bytes(count)) for count in just)
    assert len(work(_response(4, texts), "answers")) == 4
    more = work(_response(5, texts + _record(b"\0", 16, b"\0")), "answers")
    assert more == [None, b"more than 1,000 labels, pointers and texts"]
    assert len(work(QUERY + long_name + b"\0\1\0\1", "question")[0]) == 253


def test_damaged_messages_never_raise_an_error(lua):
    chosen = random.Random(1035)
    message = _answered()
    damaged = []
    for _ in range(sanitizers.fewer(600)):
        one = bytearray(message[: chosen.choice((len(message), chosen.randrange(12, 300)))])
        for _ in range(chosen.randrange(1, 5)):
            one[chosen.randrange(2, len(one))] = chosen.choice(
                (0, 1, 0xC0, 0xFF, chosen.randrange(256))
            )
        damaged.append(bytes(one))
    work = lua(WORK)
    results = work.each(damaged, "answers", together=3)
    refused = [one for one in results if len(one) == 2 and one[0] is None]
    assert len(results) // 12 < len(refused) < len(results)
    assert all(one[1] for one in refused)
    for one in work.each(damaged, "question"):
        assert one[0] is not None or one[1]


def test_names_are_normal_and_have_parents(lua):
    work = lua(WORK)
    assert work.each(["WWW.Example.", "a", "", "."], "normal") == [
        b"www.example",
        b"a",
        b"",
        b"",
    ]
    assert work.each(["a.b.c", "b.c", "c", ""], "parent") == [b"b.c", b"c", None, None]


def test_a_listed_name_is_found_above_a_name_at_a_dot(lua):
    names = [
        "bad.example",
        "www.bad.example",
        "notbad.example",
        "example",
        "a.b.c.d.e",
        "d.e",
        "",
    ]
    expected = [b"bad.example", b"bad.example", None, None, b"c.d.e", None, None]
    assert lua(WORK).each(names, "listed") == expected
