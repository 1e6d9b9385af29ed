from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.utils import rdpcap

from bridge import packetdiff
from bridge.capture import Capture
from bridge.errors import TopologyError, TrafficError
from bridge.testing import sanitizers
from bridge.traffic import Traffic, Verdict, dns_question
from netns import Topology

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from netns.plan import Version

    Policy = Callable[..., None]

pytestmark = pytest.mark.kernel
MANY = sanitizers.fewer(1000)
both = pytest.mark.parametrize("version", [4, 6])


def _ip(version: Version, **fields: Any) -> Any:
    return IP(**fields) if version == 4 else IPv6(**fields)


def _udp(version: Version, port: int = 99, payload: bytes = b"payload") -> Any:
    return _ip(version) / UDP(sport=4000, dport=port) / payload


@both
def test_what_is_forwarded_untouched_is_accepted(traffic: Traffic, version: Version) -> None:
    (outcome,) = traffic.send(_udp(version))
    assert outcome.verdict is Verdict.ACCEPTED
    assert outcome.diff == ()
    assert outcome.arrivals == 1
    assert outcome.last_seen == "server eth0"
    assert outcome.seen[UDP].load == b"payload"


@both
def test_what_a_policy_drops_is_dropped_and_its_last_place_known(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("udp dport 53 drop")
    blocked, passed = traffic.send([_udp(version, 53), _udp(version, 54)])
    assert blocked.verdict is Verdict.DROPPED
    assert blocked.last_seen == "router eth0"
    assert blocked.seen is None
    assert passed.verdict is Verdict.ACCEPTED


@both
def test_what_a_policy_changes_is_reported_field_by_field(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("udp dport 53 udp dport set 54")
    (outcome,) = traffic.send(dns_question("example.com", version=version))
    assert outcome.verdict is Verdict.CHANGED
    assert outcome.diff == (packetdiff.FieldDiff("UDP.dport", 53, 54),)
    assert "UDP.dport: 53 -> 54" in str(outcome)


@both
def test_a_changed_time_to_live_is_told_from_a_routers_count(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("ip ttl set 9", "ip6 hoplimit set 9")
    (outcome,) = traffic.send(_udp(version))
    path = "IP.ttl" if version == 4 else "IPv6.hlim"
    assert outcome.diff == (packetdiff.FieldDiff(path, 63, 9),)
    (ignored,) = traffic.send(_udp(version), ignore=["*.ttl", "*.hlim"])
    assert ignored.verdict is Verdict.ACCEPTED


@both
def test_a_packet_with_everything_recognisable_but_its_tag_changed_is_matched(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("ip id set 7", "ip6 flowlabel set 7", "udp sport set 9")
    outcomes = traffic.send([_udp(version, payload=bytes([one])) for one in range(5)])
    assert [outcome.verdict for outcome in outcomes] == [Verdict.CHANGED] * 5
    assert all(one.seen[UDP].load == one.packet[UDP].load for one in outcomes)


@both
def test_a_rejected_packet_is_answered(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("udp dport 53 reject")
    (outcome,) = traffic.send(_udp(version, 53))
    assert outcome.verdict is Verdict.ANSWERED
    router = traffic.topology["router"].address(version)
    assert [answer.src for answer in outcome.answers] == [router]


@both
def test_a_packet_that_outlives_its_hops_is_answered_by_the_router(
    traffic: Traffic, version: Version
) -> None:
    life = {"ttl": 1} if version == 4 else {"hlim": 1}
    (outcome,) = traffic.send(_ip(version, **life) / UDP(sport=4000, dport=99))
    assert outcome.verdict is Verdict.ANSWERED


@both
def test_an_echo_request_is_accepted_and_its_reply_seen(
    traffic: Traffic, version: Version
) -> None:
    echo = ICMP(id=7, seq=3) if version == 4 else ICMPv6EchoRequest(id=7, seq=3)
    (outcome,) = traffic.send(_ip(version) / echo / b"data")
    assert outcome.verdict is Verdict.ACCEPTED
    assert outcome.answered
    (answer,) = outcome.answers
    assert answer.src == traffic.topology.server.address(version)


@both
def test_a_closed_tcp_port_answers_with_a_reset(traffic: Traffic, version: Version) -> None:
    (outcome,) = traffic.send(_ip(version) / TCP(sport=4000, dport=81, seq=1000))
    assert outcome.answers[0][TCP].flags == "RA"


@both
def test_an_error_is_given_to_the_packet_it_quotes(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("@th,64,8 2 drop")  # the payload's first byte; ports and addresses are equal
    outcomes = traffic.send([_udp(version, payload=bytes([one])) for one in range(4)])
    assert [outcome.answered for outcome in outcomes] == [True, True, False, True]
    assert [outcome.verdict for outcome in outcomes][2] is Verdict.DROPPED


@both
def test_an_accepted_question_is_answered(
    traffic: Traffic, policy: Policy, version: Version
) -> None:
    policy("udp dport 53 @th,160,8 3 drop")  # the first label's length
    questions = [
        dns_question("example.com", "A", version=version),
        dns_question("ads.test", "A", version=version),
        dns_question("example.com", "AAAA", version=version),
        dns_question("example.com", "MX", version=version),
    ]
    with traffic.dns_server() as server:
        a, blocked, aaaa, mx = traffic.send(questions)
        assert server.questions == 3
    assert blocked.verdict is Verdict.DROPPED
    assert a.answers[0][DNS].an[0].rdata == "192.0.2.53"
    assert aaaa.answers[0][DNS].an[0].rdata == "2001:db8::53"
    assert mx.answers[0][DNS].ancount == 0


@both
def test_a_thousand_packets_arrive_without_loss(traffic: Traffic, version: Version) -> None:
    outcomes = traffic.send([_udp(version) for _ in range(MANY)])
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPTED] * MANY
    assert all(outcome.answered for outcome in outcomes)


@both
def test_equal_packets_with_equal_tags_are_told_apart_by_order(
    traffic: Traffic, version: Version
) -> None:
    tag = {"id": 5} if version == 4 else {"fl": 5}
    same = _ip(version, **tag) / UDP(sport=4000, dport=99)
    outcomes = traffic.send([same] * 3)
    assert [(one.verdict, one.arrivals) for one in outcomes] == [(Verdict.ACCEPTED, 1)] * 3


def test_copies_are_counted(traffic: Traffic) -> None:
    # The sender is the policy's stand-in: two packets that are equal to the byte, of
    # which only one is declared as sent.
    packet = IP(id=5, src="192.0.2.1", dst="198.51.100.1") / UDP(sport=4000, dport=99)
    inject = traffic._inject

    def inject_twice(sent: list[Any], *args: Any) -> None:
        inject(sent * 2, *args)

    traffic._inject = inject_twice  # type: ignore[method-assign]
    (outcome,) = traffic.send(packet)
    assert (outcome.verdict, outcome.arrivals) == (Verdict.ACCEPTED, 2)
    assert "2 copies" in str(outcome)


@both
def test_checksums_on_the_wire_are_right(traffic: Traffic, version: Version) -> None:
    traffic.udp_exchange(version=version)
    traffic.tcp_exchange(version=version, data=bytes(5000))
    traffic.send(_udp(version))
    read = IP if version == 4 else IPv6
    kind = 0x0800 if version == 4 else 0x86DD
    packets = [read(one.data[14:]) for one in traffic.frames if one.ethertype == kind]
    assert len([packet for packet in packets if TCP in packet]) > 10
    assert [packet for packet in packets if packetdiff.wrong_checksums(packet)] == []
    assert max(len(packet) for packet in packets) <= 1500


@both
def test_a_wrong_checksum_that_was_sent_arrives_as_sent(
    traffic: Traffic, version: Version
) -> None:
    (outcome,) = traffic.send(_ip(version) / UDP(sport=4000, dport=99, chksum=0x1234) / b"x")
    assert outcome.verdict is Verdict.ACCEPTED
    assert outcome.seen[UDP].chksum == 0x1234
    assert not outcome.answered  # the target's kernel drops it


@both
def test_drops_in_the_targets_own_hooks_show_at_its_sockets(
    rules: Policy, version: Version
) -> None:
    with Topology.pair() as topology, Traffic(topology) as traffic:
        rules(topology.server, "input", "udp dport 53 drop")
        packets = [_udp(version, 53), _udp(version, 54), _ip(version) / TCP(dport=9)]
        on_link = traffic.send(packets)
        at_sockets = traffic.send(packets, observe="socket")
    assert [one.verdict for one in on_link] == [Verdict.ACCEPTED] * 3
    assert [one.verdict for one in at_sockets] == [
        Verdict.DROPPED,
        Verdict.ACCEPTED,
        Verdict.ACCEPTED,
    ]
    assert at_sockets[0].last_seen == "server eth0"


@both
def test_sending_by_socket_meets_the_senders_own_hooks(rules: Policy, version: Version) -> None:
    with Topology.pair() as topology, Traffic(topology) as traffic:
        rules(topology.client, "output", "udp dport 53 drop")
        (past,) = traffic.send(_udp(version, 53))
        (blocked,) = traffic.send(_udp(version, 53), via="socket")
        (passed,) = traffic.send(_udp(version, 54), via="socket")
    assert past.verdict is Verdict.ACCEPTED
    assert blocked.verdict is Verdict.DROPPED
    assert blocked.last_seen == "client eth0"
    assert passed.verdict is Verdict.ACCEPTED


@both
def test_resolved_neighbours_lose_nothing(version: Version) -> None:
    with Topology.router(static_neighbours=False) as topology, Traffic(topology) as traffic:
        (outcome,) = traffic.send(_udp(version))
        assert outcome.verdict is Verdict.ACCEPTED
        assert outcome.answered


@pytest.mark.parametrize(
    ("src", "dst"), [("server", "client"), ("client", "router"), ("router", "server")]
)
@both
def test_any_host_can_send_to_any_other(
    traffic: Traffic, src: str, dst: str, version: Version
) -> None:
    (outcome,) = traffic.send(_udp(version), src=src, dst=dst)
    assert outcome.verdict is Verdict.ACCEPTED
    assert outcome.last_seen.startswith(dst)


def test_the_capture_runs_before_the_first_packet(shared_router: Topology) -> None:
    # The very first frame after the constructor is caught, each time.
    for _ in range(20):
        with (
            Traffic(shared_router) as sender,
            Capture(shared_router.server, "eth0") as capture,
        ):
            sender.send(_udp(4))
            assert len(capture.drain()) == 1


def test_a_capture_that_loses_frames_is_inconclusive(shared_router: Topology) -> None:
    with (
        Traffic(shared_router, buffer_bytes=8192) as traffic,
        pytest.raises(TrafficError, match=r"lost \d+ frames, so nothing can be said"),
    ):
        traffic.send([_udp(4, payload=bytes(1000)) for _ in range(60)])


def test_frames_lost_before_do_not_matter(shared_router: Topology) -> None:
    with Traffic(shared_router, buffer_bytes=8192) as traffic:
        traffic.tcp_exchange(data=bytes(200_000), timeout_s=60)
        (outcome,) = traffic.send(_udp(4))
        assert sum(capture.lost for capture in traffic._captures.values()) > 0
    assert outcome.verdict is Verdict.ACCEPTED


def test_a_link_that_is_cut_is_a_failure_and_no_verdict() -> None:
    with Topology.pair() as topology, Traffic(topology, timeout_s=0.2) as traffic:
        topology.server.run(["ip", "link", "set", "eth0", "down"], check=True)
        with pytest.raises(TrafficError):
            traffic.send(_udp(4))


def test_barriers_of_other_traffic_are_not_taken_for_ones_own(shared_router: Topology) -> None:
    with Traffic(shared_router) as one, Traffic(shared_router) as other:
        for _ in range(3):
            one.send(_udp(4, 9))
        before = {capture: capture.barrier for capture in one._captures.values()}
        (outcome,) = other.send(_udp(4, 9))  # with barriers of lower numbers
        assert outcome.verdict is Verdict.ACCEPTED
        one._drain()
        assert {capture: capture.barrier for capture in before} == before


def test_packets_held_back_are_waited_for(shared_router: Topology, policy: Policy) -> None:
    policy("ip id 777 drop")
    held = IP(id=777) / UDP(sport=4000, dport=99) / b"held"
    with Traffic(shared_router) as traffic, Traffic(shared_router) as late:

        def release() -> None:
            time.sleep(0.1)
            shared_router["router"].run(["nft", "flush", "ruleset"], check=True)
            late.send(held)

        thread = threading.Thread(target=release)
        thread.start()
        (outcome,) = traffic.send(held, settle_s=60)
        thread.join()
    assert outcome.verdict is Verdict.ACCEPTED


@pytest.mark.kernel(
    min="6.12", reason="Debian 12's scapy reads no interfaces and comments from pcapng"
)
def test_one_file_follows_a_packet_over_all_links(
    traffic: Traffic, policy: Policy, tmp_path: Path
) -> None:
    policy("udp dport 53 drop")
    traffic.send([_udp(4, 53), _udp(4, 54)])
    traffic.save(tmp_path / "all.pcapng")
    packets = rdpcap(str(tmp_path / "all.pcapng"))
    seen = [(packet.sniffed_on, packet[UDP].dport) for packet in packets if ICMP not in packet]
    assert seen == [("router:eth0", 53), ("router:eth0", 54), ("server:eth0", 54)]
    comments = b"\n".join(packet.comment or b"" for packet in packets)
    assert b"#1 dropped (last seen at router eth0)" in comments
    assert b"#2 accepted" in comments


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (UDP(dport=1), "does not start with IP"),
        (IP() / UDP() / bytes(1500), "larger than the links carry"),
    ],
)
def test_what_cannot_be_sent_is_refused(traffic: Traffic, packet: Any, complaint: str) -> None:
    with pytest.raises(TrafficError, match=complaint):
        traffic.send(packet)


def test_a_packet_set_is_sent_as_all_its_packets(traffic: Traffic) -> None:
    outcomes = traffic.send(IP() / UDP(sport=4000, dport=[97, 98, 99]))
    assert [one.packet.dport for one in outcomes] == [97, 98, 99]
    assert {one.verdict for one in outcomes} == {Verdict.ACCEPTED}


def test_the_callers_packet_is_left_as_it_was(traffic: Traffic) -> None:
    packet = IP() / UDP(sport=4000, dport=99)
    before = dict(packet.fields)
    (outcome,) = traffic.send(packet)
    assert packet.fields == before
    assert outcome.packet.src == traffic.topology.client.address()


def test_unknown_hosts_and_the_way_to_oneself_are_refused(traffic: Traffic) -> None:
    with pytest.raises(TopologyError, match="no host 'nobody'"):
        traffic.send(_udp(4), dst="nobody")
    with pytest.raises(TrafficError, match="itself"):
        traffic.send(_udp(4), src="client", dst="client")


def test_capturing_where_there_is_no_interface_is_an_error(shared_router: Topology) -> None:
    with pytest.raises(TrafficError, match="cannot capture on eth9 of client"):
        Capture(shared_router.client, "eth9")
