"""`lunabridge send` reads a packet, and tells what a policy did with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bridge import cli
from bridge.errors import UsageError
from bridge.expression import parse

stock_kernel = pytest.mark.stock_kernel("its IPv6 has no policy routing")
Output = pytest.CaptureFixture[str]
Write = Callable[..., str]

# ---- what is a packet ------------------------------------------------------------------


def test_a_packet_is_what_scapy_makes_of_the_text() -> None:
    from scapy.layers.dns import DNS, DNSQR
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import IPv6

    pair = {"src": "192.0.2.1", "dst": "198.51.100.1"}
    pair6 = {"src": "2001:db8::1", "dst": "2001:db8::2"}
    text, text6 = (", ".join(f"{k}={v!r}" for k, v in one.items()) for one in (pair, pair6))
    for written, meant in (
        (f"IP({text})/UDP(dport=53)", IP(**pair) / UDP(dport=53)),
        (f"IPv6({text6}, hlim=9)/TCP(flags='S')", IPv6(**pair6, hlim=9) / TCP(flags="S")),
        (f" IP({text})/ICMP()/(b'x' * 3) ", IP(**pair) / ICMP() / b"xxx"),
        (f"IP({text})/UDP()/'text'", IP(**pair) / UDP() / "text"),
        (
            f"IP({text})/UDP()/DNS(id=-0, qd=[DNSQR(qname='a.b')])",
            IP(**pair) / UDP() / DNS(id=0, qd=[DNSQR(qname="a.b")]),
        ),
        (
            f"IP({text})/TCP(options=[('MSS', 9), ('NOP', None)])",
            IP(**pair) / TCP(options=[("MSS", 9), ("NOP", None)]),
        ),
    ):
        assert bytes(parse(written)) == bytes(meant)


def test_a_dns_question_is_a_packet() -> None:
    assert b"\3bad\7example" in bytes(parse('dns_question("bad.example", version=6)'))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "invalid syntax"),
        ("IP(", "never closed"),
        ("UDP()", "begins with IP"),
        ("Ether()/IP()", "begins with IP"),
        ("IP()/Nothing()", "no layer Nothing"),
        ("IP(colour=1)", "no field colour"),
        ("IP(ttl='x')/UDP()", "value that it cannot have"),
        ("IP(ttl=[1, 2])", "stands for 2 packets"),
        ("IP()/1", "what / puts together"),
        ("'a'/IP()", "what / puts together"),
        ("IP()/(b'x' * 70000)", "more than a packet has"),
        ("IP() * 2", "what * repeats"),
        ("IP(ttl=1.5)", "1.5 is no layer and no value"),
        ("53", "begins with IP"),
        ("dns_question(1, 2, 3)", "positional"),
    ],
)
def test_what_is_no_packet_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert why in caught.value.message
    assert "IP()/UDP(dport=53)" in str(caught.value.cure)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "IP(dst=open('/etc/passwd'))",
        "IP().__class__",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "IP(**{'ttl': 1}.pop())",
        "exit()",
        "Packet.mro()",
    ],
)
def test_nothing_is_run(text: str) -> None:
    with pytest.raises(UsageError, match="is no"):
        parse(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["IP(", "--policy", "accept"],
        ["IP()"],
        ["IP()", "--policy", "no_such"],
        ["IP()", "--policy", "accept", "--expect", "lost"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert cli.run(["send", *arguments]) == 2


# ---- in a kernel -------------------------------------------------------------------------


def native(*arguments: str) -> int:
    return cli.run(["send", "--native", *arguments])


def told(capsys: Output, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert native("--json", *arguments) == status
    outcome: dict[str, Any] = json.loads(capsys.readouterr().out)
    return outcome


@pytest.mark.kernel
@stock_kernel
def test_the_first_line_has_the_verdict(capsys: Output) -> None:
    for packet, verdict in (
        ("IP()/UDP(dport=53)", "dropped"),
        ("IPv6()/TCP(dport=53)", "dropped"),
        ("IP(dst='203.0.113.9')/UDP(dport=54)", "accepted"),
    ):
        assert native(packet, "--policy", "drop_port") == 0
        assert capsys.readouterr().out.startswith(f"{verdict}: IP")


@pytest.mark.kernel
@stock_kernel
def test_what_was_changed_and_answered_is_shown(hook: Write, capsys: Output) -> None:
    policy = hook("skb:ttl(7) skb:dport(81) return nf.action.ACCEPT")
    assert native("IP()/UDP(dport=80)", "--policy", policy) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("changed: ")
    assert "  IP.ttl: 63 -> 7" in lines
    assert "  UDP.dport: 80 -> 81" in lines
    rejects = hook("return skb:reject()", name="rejects")
    outcome = told(capsys, "IP()/TCP(dport=80)", "--policy", rejects)
    assert outcome["verdict"] == "answered"
    assert len(outcome["answers"]) == 1


@pytest.mark.kernel
@stock_kernel
def test_a_failing_callback_is_named_with_its_line(hook: Write, capsys: Output) -> None:
    policy = hook("error('no idea')", extra="onerror = 'drop',")
    assert native("IP()/UDP()", "--policy", policy) == 1
    out = capsys.readouterr().out
    assert out.startswith("dropped: ")
    assert "mine.lua:6: no idea" in out
    outcome = told(capsys, "IP()/UDP()", "--policy", policy, status=1)
    assert (outcome["line"], outcome["error"]) == (6, "no idea")


@pytest.mark.kernel
@stock_kernel
def test_an_unexpected_verdict_exits_with_1(capsys: Output) -> None:
    packet = ["IP()/UDP(dport=53)", "--policy", "drop_port", "--expect"]
    assert native(*packet, "dropped") == 0
    assert native(*packet, "accepted") == 1
    assert "accepted was expected" in capsys.readouterr().err


@pytest.mark.kernel
@stock_kernel
def test_what_linux_does_not_forward_is_not_the_policys_doing(capsys: Output) -> None:
    outcome = told(capsys, "IP(dst='127.0.0.1')/UDP()", "--policy", "accept")
    assert (outcome["verdict"], outcome["seen_by_policy"]) == ("not forwarded", False)


@pytest.mark.kernel
@stock_kernel
def test_a_policy_is_resumed_before_the_packet(capsys: Output) -> None:
    packet = ['dns_question("a.bad.example")', "--policy", "dns_block"]
    assert told(capsys, *packet)["verdict"] == "accepted"
    assert told(capsys, *packet, "--resume", "block bad.example")["verdict"] == "dropped"
