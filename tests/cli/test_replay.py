"""`lunabridge replay` tells of every packet of a capture what a policy did with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge import cli, replay
from bridge.events import End, Event, Judged

stock_kernel = pytest.mark.stock_kernel("its IPv6 has no policy routing")
Output = pytest.CaptureFixture[str]
Write = Callable[..., str]


def packets() -> list[Any]:
    """Of addresses that no topology has, both directions of a conversation, and others."""
    from scapy.layers.dns import DNS, DNSQR
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
    from scapy.layers.l2 import ARP, Ether

    here, there = "10.1.2.3", "93.184.216.34"
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    question = DNS(id=7, qd=DNSQR(qname="bad.example"))
    return [
        link / IP(src=here, dst=there) / UDP(sport=4000, dport=53) / question,
        link / IP(src=there, dst=here, id=9) / UDP(sport=53, dport=4000) / b"answer",
        link / ARP(pdst=there),
        link / IP(src=here, dst=there, ttl=64) / TCP(dport=443, flags="S"),
        link / IPv6(src="fd00::1", dst="2606:2800::1") / UDP(dport=53) / b"x",
        link / IPv6(src="fd00::1", dst="2606:2800::1") / ICMPv6EchoRequest(),
        link / IP(src=here, dst=there, ttl=1) / ICMP(),
        link / IP(src=here, dst="224.0.0.251") / UDP(dport=5353),
        link / IP(src=here, dst=there) / UDP(dport=53) / (b"x" * 2000),
    ]


@pytest.fixture
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from scapy.utils import wrpcap

    monkeypatch.chdir(tmp_path)
    wrpcap("capture.pcap", packets())
    return "capture.pcap"


# ---- on the host: the place is a recording ------------------------------------------


class Recorded:
    def __init__(self) -> None:
        self.interrupted = False
        self.job: dict[str, Any] = {}
        self.events: list[Event] = []

    def work(
        self, module: str, job: dict[str, Any], timeout_s: float | None, **_: object
    ) -> Iterator[Event]:
        assert module == "bridge.replaying"
        self.job = job
        yield from self.events


def judged(number: int, verdict: str = "accepted", **more: Any) -> Judged:
    fields: dict[str, Any] = {
        "seen_by_policy": True, "sent": "", "arrived": None, "diff": (), "answers": (),
        "last_seen": "", "error": None,
    }  # fmt: skip
    return Judged(number, verdict, **(fields | more))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    place = Recorded()
    place.events = [*(judged(number) for number in (1, 2, 4, 5, 6, 7, 8)), End(0.0)]

    @contextmanager
    def opened(**_: object) -> Iterator[Recorded]:
        yield place

    monkeypatch.setattr(replay, "open_place", opened)
    return place


def test_each_packet_has_a_row_and_a_place_in_the_counts(
    recorded: Recorded, capture: str, capsys: Output
) -> None:
    recorded.events[0] = judged(1, "dropped")
    assert cli.run(["replay", capture, "--policy", "drop_port"]) == 0
    head, *rows, counts = capsys.readouterr().out.splitlines()
    assert head.split() == ["number", "time", "verdict", "packet"]
    assert [row.split()[0] for row in rows] == [str(n) for n in range(1, 10)]
    assert "dropped" in rows[0]
    assert "bad.example" in rows[0]
    assert "skipped" in rows[2]
    assert "not IP but ARP" in rows[2]
    assert "2,028 bytes" in rows[8]
    assert counts == "9 packets: 6 accepted, 2 skipped, 1 dropped"
    assert [number for number, _ in recorded.job["packets"]] == [1, 2, 4, 5, 6, 7, 8]


def test_progress_is_told_aside_unless_it_is_to_be_quiet(
    recorded: Recorded, capture: str, capsys: Output
) -> None:
    assert cli.run(["replay", capture, "--policy", "drop_port"]) == 0
    assert "sending 7 packets through drop_port" in capsys.readouterr().err
    assert cli.run(["replay", capture, "--policy", "drop_port", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_json_has_every_packet(recorded: Recorded, capture: str, capsys: Output) -> None:
    assert cli.run(["replay", capture, "--policy", "drop_port", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["counts"] == {"accepted": 7, "skipped": 2}
    assert [one["number"] for one in whole["packets"]] == list(range(1, 10))
    assert whole["packets"][2]["detail"] == "not IP but ARP"


def test_a_callback_that_fails_is_shown_with_its_line_and_exits_with_1(
    recorded: Recorded, capture: str, capsys: Output
) -> None:
    recorded.events[3] = judged(5, error="drop_port:12: no such field")
    assert cli.run(["replay", capture, "--policy", "drop_port"]) == 1
    out = capsys.readouterr().out
    assert "drop_port.lua:12: no such field" in out
    assert "for 1 of them a callback failed" in out


def test_a_capture_of_nothing_that_can_be_sent_exits_with_4_without_a_machine(
    recorded: Recorded, tmp_path: Path, capsys: Output
) -> None:
    from scapy.utils import wrpcap

    path = tmp_path / "arp.pcap"
    wrpcap(str(path), [packets()[2]])
    assert cli.run(["replay", str(path), "--policy", "accept"]) == 4
    assert capsys.readouterr().out.splitlines()[-1] == "1 packet: 1 skipped"
    assert recorded.job == {}


def test_an_interrupted_replay_shows_what_was_judged_and_exits_with_130(
    recorded: Recorded, capture: str, capsys: Output
) -> None:
    recorded.events, recorded.interrupted = recorded.events[:2], True
    assert cli.run(["replay", capture, "--policy", "accept"]) == 130
    assert "3 packets: 2 accepted, 1 skipped" in capsys.readouterr().out


def test_a_replay_that_just_ends_is_a_failure(recorded: Recorded, capture: str) -> None:
    recorded.events = recorded.events[:-1]
    assert cli.run(["replay", capture, "--policy", "accept"]) == 1


def test_what_the_policy_is_resumed_with_is_split_into_words(
    recorded: Recorded, capture: str
) -> None:
    arguments = ["--resume", "block bad.example", "--resume", "'a b' 7"]
    assert cli.run(["replay", capture, "--policy", "dns_block", *arguments]) == 0
    assert recorded.job["resumes"] == [["block", "bad.example"], ["a b", "7"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["no.pcap", "--policy", "accept"],
        ["capture.pcap"],
        ["capture.pcap", "--policy", "no_such"],
        ["capture.pcap", "--policy", "accept", "--resume", "'open"],
        ["capture.pcap", "--policy", "accept", "--resume", "99999999999999999999"],
    ],
)
@pytest.mark.usefixtures("capture")
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert cli.run(["replay", *arguments]) == 2


# ---- in a kernel ---------------------------------------------------------------------


def verdicts(capsys: Output, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    assert cli.run(["replay", "--native", "--json", *arguments]) == status
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["packets"]
    return rows


@pytest.mark.kernel
@stock_kernel
def test_packets_of_any_addresses_meet_the_policy(capture: str, capsys: Output) -> None:
    rows = verdicts(capsys, capture, "--policy", "drop_port")
    assert [row["verdict"] for row in rows] == [
        "dropped", "accepted", "skipped", "accepted", "dropped", "accepted",
        "not forwarded", "not forwarded", "skipped",
    ]  # fmt: skip
    assert [row["seen_by_policy"] for row in rows] == [
        True, True, False, True, True, True, False, False, False
    ]  # fmt: skip
    assert "time-exceeded" in rows[6]["detail"]
    assert all(row["error"] is None for row in rows)


@pytest.mark.kernel
@stock_kernel
def test_a_policy_is_resumed_before_the_packets(capture: str, capsys: Output) -> None:
    dns = ["--policy", "dns_block"]
    assert verdicts(capsys, capture, *dns)[0]["verdict"] == "accepted"
    rows = verdicts(capsys, capture, *dns, "--resume", "block bad.example")
    assert rows[0]["verdict"] == "dropped"
    assert verdicts(capsys, capture, "--policy", "drop_port", "--resume", "443")[3][
        "verdict"
    ] == ("dropped")


@pytest.mark.kernel
@stock_kernel
def test_what_the_policy_changes_rejects_and_fails_on_is_told(
    capture: str, hook: Write, capsys: Output
) -> None:
    policy = hook(
        """
    if skb:protocol() == 6 then return skb:reject() end
    if skb:sport() == 53 then skb:ttl(9) end
    if skb:protocol() == 58 then error('what is this?') end
    return nf.action.ACCEPT"""
    )
    rows = verdicts(capsys, capture, "--policy", policy, status=1)
    assert rows[1]["verdict"] == "changed"
    assert "IP.ttl: 63 -> 9" in rows[1]["detail"]
    assert rows[3]["verdict"] == "answered"
    assert "answer: " in rows[3]["detail"]
    assert (rows[5]["verdict"], rows[5]["line"]) == ("accepted", 9)
    assert rows[5]["error"] == "what is this?"


@pytest.mark.kernel
@stock_kernel
def test_connections_are_followed_through_both_directions(
    hook: Write, tmp_path: Path, capsys: Output
) -> None:
    from scapy.layers.inet import IP, TCP
    from scapy.utils import wrpcap

    ports = {"sport": 4000, "dport": 80}
    there, back = IP(src="10.0.0.1", dst="10.0.0.2"), IP(src="10.0.0.2", dst="10.0.0.1")
    wrpcap(
        str(tmp_path / "tcp.pcap"),
        [
            there / TCP(**ports, flags="S", seq=1),
            back / TCP(sport=80, dport=4000, flags="SA", seq=9, ack=2),
            there / TCP(**ports, flags="A", seq=2, ack=10),
            there / TCP(sport=5000, dport=80, flags="S", seq=1),
        ],
    )
    policy = hook(
        """
    if skb:ctstate() == "established" then return nf.action.ACCEPT end
    return skb:ctstate() == "new" and skb:sport() == 4000 and nf.action.ACCEPT
      or nf.action.DROP"""
    )
    rows = verdicts(capsys, "tcp.pcap", "--policy", policy)
    assert [row["verdict"] for row in rows] == ["accepted"] * 3 + ["dropped"]


@pytest.mark.kernel
@stock_kernel
def test_a_capture_of_real_traffic_is_replayed(
    traffic: Any, tmp_path: Path, capsys: Output
) -> None:
    traffic.tcp_exchange(data=b"x" * 5000)
    traffic.ping(count=2)
    path = tmp_path / "real.pcapng"
    traffic.save(path)
    rows = verdicts(capsys, str(path), "--policy", "accept")
    assert len(rows) > 20
    assert {row["verdict"] for row in rows} == {"accepted"}


@pytest.mark.kernel
@stock_kernel
def test_a_policy_without_hooks_and_one_that_does_not_load_are_refused(
    capture: str, capsys: Output
) -> None:
    assert cli.run(["replay", "--native", capture, "--policy", "echo"]) == 1
    assert "registers no hook" in capsys.readouterr().err
    wrong = ["--policy", "drop_port", "--resume", "nonsense"]
    assert cli.run(["replay", "--native", capture, *wrong]) == 1
    assert "resume takes a port number" in capsys.readouterr().err
    assert not Path("/sys/module/lunatik").exists()
