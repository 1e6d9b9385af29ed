"""The connection a packet belongs to, and rejecting packets."""

from __future__ import annotations

import errno
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from bridge.lunatik import Lunatik
from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel

both_versions = pytest.mark.parametrize("version", [4, 6])
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

TRACKING = """
table inet tracking {
  chain raw {
    type filter hook prerouting priority raw;
    udp dport 7100 notrack
    udp sport 7100 notrack
  }
  chain forward {
    type filter hook forward priority 100;
    ct state new counter
  }
}
"""


@pytest.fixture(scope="module")
def tracked(router):
    """The router with connection tracking, which a rule that asks for it turns on."""
    subprocess.run(
        ["ip", "netns", "exec", router["router"].netns, "nft", "-f", "-"],
        input=TRACKING, text=True, check=True,
    )  # fmt: skip
    yield router
    router["router"].run(["nft", "flush", "ruleset"], check=True)


STATES = """
coroutine.yield()
return table.concat(states, " ")
"""
NOTE = """
local state, direction = skb:ctstate()
states[#states + 1] = state .. (direction and "/" .. direction or "")
return ACCEPT
"""


@both_versions
def test_the_states_of_a_tcp_connection(policy, traffic, tracked, version):
    runtime = policy(NOTE, before="local states = {}", after=STATES)
    assert traffic.tcp_exchange("client", "server", version=version).completed
    states = runtime.resume().split()
    assert states[:3] == [b"new/original", b"established/reply", b"established/original"]
    assert set(states[3:]) == {b"established/reply", b"established/original"}


@both_versions
def test_an_error_is_related_to_what_it_is_about(policy, traffic, tracked, version):
    runtime = policy(NOTE, before="local states = {}", after=STATES)
    traffic.udp_exchange("client", "server", port=7101, version=version, listen=False)
    assert runtime.resume().split() == [b"new/original", b"related/reply"]


@both_versions
def test_what_is_not_tracked_says_so(policy, traffic, tracked, version):
    runtime = policy(NOTE, before="local states = {}", after=STATES)
    traffic.udp_exchange("client", "server", port=7100, version=version)
    assert runtime.resume().split() == [b"untracked", b"untracked"]


@both_versions
def test_a_packet_out_of_the_blue_is_invalid(policy, traffic, tracked, version):
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6

    runtime = policy(NOTE, before="local states = {}", after=STATES)
    traffic.send((IPv6() if version == 6 else IP()) / TCP(dport=9, flags="R"))
    assert runtime.resume().split() == [b"invalid"]


def test_without_tracking_every_packet_is_invalid_and_has_no_mark(lunatik):
    from bridge.traffic import Traffic
    from netns import Topology

    source = """
    local nf = require "netfilter"
    local states, mark, message = {}, true
    nf.register{
      pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
      hook = function(skb)
        states[#states + 1] = skb:ctstate()
        mark = skb:connmark()
        message = select(2, pcall(skb.connmark, skb, 1))
        return nf.action.ACCEPT
      end,
    }
    coroutine.yield()
    return mark, message, table.concat(states, " ")
    """
    with Topology.router() as topology, Traffic(topology) as traffic:
        netns = topology["router"].netns
        with lunatik.runtime("none", source=source, sleep=False, netns=netns) as runtime:
            assert traffic.ping("client", "server").received == 1
            mark, message, states = runtime.resume()
    assert mark is None
    assert b"no connection to mark" in message
    assert states == b"invalid invalid"


@both_versions
def test_the_mark_of_a_connection_stays_with_it(policy, traffic, tracked, version):
    runtime = policy(
        """
        marks[#marks + 1] = skb:connmark()
        if skb:ctstate() == "new" then skb:connmark(0xfffffff7) end
        return ACCEPT
        """,
        before="local marks = {}",
        after="coroutine.yield() return table.unpack(marks, 1, 4)",
    )
    assert traffic.tcp_exchange("client", "server", version=version).completed
    assert runtime.resume() == (0, 0xFFFFFFF7, 0xFFFFFFF7, 0xFFFFFFF7)
    listed = tracked["router"].run(["conntrack", "-L"]).stdout
    assert "mark=4294967287" in listed


# Reject


@both_versions
def test_rejected_tcp_is_refused_at_once(policy, router, version):
    policy("if skb:dport() == 7200 then return skb:reject() end return ACCEPT")
    with router["client"].socket(FAMILIES[version]) as client:
        client.settimeout(30)
        with pytest.raises(ConnectionRefusedError):
            client.connect((router["server"].address(version), 7200))


@both_versions
def test_rejected_udp_is_refused_at_once(policy, router, version):
    policy("if skb:dport() == 7200 then return skb:reject() end return ACCEPT")
    with router["client"].socket(FAMILIES[version], socket.SOCK_DGRAM) as client:
        client.settimeout(30)
        client.connect((router["server"].address(version), 7200))
        client.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


CODES = {
    "no-route": ((3, 0), (1, 0)),
    "host-unreachable": ((3, 1), (1, 3)),
    "port-unreachable": ((3, 3), (1, 4)),
    "admin-prohibited": ((3, 13), (1, 1)),
}


@both_versions
@pytest.mark.parametrize("how", CODES)
def test_the_answer_is_the_one_asked_for(policy, traffic, router, version, how):
    from scapy.layers.inet import ICMP, IP, UDP
    from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6

    policy(f"return skb:reject('{how}')")
    outcome = traffic.send((IPv6() if version == 6 else IP()) / UDP(dport=9) / b"x")[0]
    assert outcome.verdict == Verdict.ANSWERED
    (answer,) = outcome.answers
    layer = answer[ICMPv6DestUnreach if version == 6 else ICMP]
    assert (layer.type, layer.code) == CODES[how][version == 6]
    assert answer.src == router["router"].address(version)


@both_versions
@pytest.mark.parametrize(
    ("place", "hook"),
    [("router", "PRE_ROUTING"), ("server", "LOCAL_IN"), ("server", "PRE_ROUTING"),
     ("client", "LOCAL_OUT")],
)  # fmt: skip
def test_packets_are_rejected_where_they_can_be(script, router, version, place, hook):
    script(
        f"""
        local nf = require "netfilter"
        nf.register{{
          pf = nf.family.INET, hooknum = nf.inet_hooks.{hook}, priority = 0, onerror = "drop",
          hook = function(skb)
            if skb:dport() == 7201 then return skb:reject() end
            return nf.action.ACCEPT
          end,
        }}
        """,
        sleep=False,
        netns=router[place].netns,
    )
    with (
        router["server"].socket(FAMILIES[version]) as listener,
        router["client"].socket(FAMILIES[version]) as client,
    ):
        listener.bind(("", 7201))
        listener.listen()
        client.settimeout(30)
        with pytest.raises(ConnectionRefusedError):
            client.connect((router["server"].address(version), 7201))


@pytest.mark.parametrize(
    "case",
    [
        ("POST_ROUTING", "skb:reject()", "packets are rejected at the hooks PRE_ROUTING"),
        ("FORWARD", "skb:reject('tcp-reset')", "only TCP has resets"),
        ("FORWARD", "skb:reject('nicely')", "invalid option 'nicely'"),
    ],
)
def test_what_cannot_be_rejected_raises_and_is_not_answered(script, traffic, router, case):
    from scapy.layers.inet import IP, UDP

    hook, call, message = case
    runtime = script(
        f"""
        local nf = require "netfilter"
        nf.register{{
          pf = nf.family.IPV4, hooknum = nf.inet_hooks.{hook}, priority = 0,
          hook = function(skb)
            if skb:dport() ~= 7999 then return nf.action.ACCEPT end
            return {call}
          end,
        }}
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    with router["server"].socket(kind=socket.SOCK_DGRAM) as sink:
        sink.bind(("", 7999))
        outcome = traffic.send(IP() / UDP(dport=7999))[0]
    assert outcome.verdict == Verdict.ACCEPTED
    assert not outcome.answers
    assert message in runtime.info().last_error


def test_a_callback_that_fails_has_rejected_nothing(policy, traffic):
    from scapy.layers.inet import IP, UDP

    runtime = policy("skb:reject() error('after all')", extra='onerror = "drop",')
    outcome = traffic.send(IP() / UDP(dport=9))[0]
    assert outcome.verdict == Verdict.DROPPED
    assert runtime.info().errors == 1


def test_a_rejected_packet_is_dropped_whatever_the_verdict(policy, traffic):
    from scapy.layers.inet import IP, UDP

    policy("skb:reject() return ACCEPT")
    assert traffic.send(IP() / UDP(dport=9))[0].verdict == Verdict.ANSWERED


COUNT = """
local nf = require "netfilter"
local count = 0
nf.register{
  pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0, onerror = "drop",
  hook = function(skb)
    count = count + 1
    return VERDICT
  end,
}
coroutine.yield()
return count
"""
REJECT = """
nf.register{
  pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0, onerror = "drop",
  hook = function(skb) return skb:reject() end,
}
"""


@both_versions
def test_a_runtime_does_not_see_its_own_answers_and_others_do(script, traffic, router, version):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    netns = router["router"].netns
    own = COUNT.replace("coroutine", REJECT + "coroutine", 1)
    rejecting = script(own.replace("VERDICT", "nf.action.DROP"), sleep=False, netns=netns)
    other = script(COUNT.replace("VERDICT", "nf.action.ACCEPT"), sleep=False, netns=netns)
    outcome = traffic.send((IPv6() if version == 6 else IP()) / UDP(dport=9))[0]
    assert outcome.verdict == Verdict.ANSWERED
    assert (rejecting.resume(), other.resume()) == (0, 1)


def test_an_answer_to_an_answer_is_not_sent(script, traffic, router):
    """Two runtimes that reject what the other sends end there, each unharmed."""
    from scapy.layers.inet import IP, UDP

    netns = router["router"].netns
    source = COUNT.replace("coroutine", REJECT + "coroutine", 1)
    runtimes = [
        script(source.replace("VERDICT", "skb:reject()"), sleep=False, netns=netns)
        for _ in range(2)
    ]
    outcome = traffic.send(IP() / UDP(dport=9))[0]
    assert outcome.verdict == Verdict.DROPPED, [runtime.info() for runtime in runtimes]
    assert [runtime.info().errors for runtime in runtimes] == [0, 0]
    assert sorted(runtime.resume() for runtime in runtimes) == [0, 1]


def test_runtimes_that_reject_on_all_cpus_do_not_wait_for_each_other(script, router):
    """Each one's answers pass the other's hook: with a lock held, they would deadlock."""
    netns = router["router"].netns
    source = COUNT.replace("coroutine", REJECT + "coroutine", 1)
    runtimes = [
        script(source.replace("VERDICT", "nf.action.ACCEPT"), sleep=False, netns=netns)
        for _ in range(2)
    ]

    def flood(source: str, target: str) -> None:
        with router[source].socket(kind=socket.SOCK_DGRAM) as sender:
            for _ in range(500):
                sender.sendto(b"x", (router[target].address(), 7203))

    floods = [
        threading.Thread(target=flood, args=ends)
        for ends in (("client", "server"), ("server", "client"))
    ]
    for thread in floods:
        thread.start()
    for thread in floods:
        thread.join()
    # One of them sees every packet and answers it; the other one sees the answers.
    assert sorted(runtime.info().calls for runtime in runtimes) == [1000, 1000]
    assert sorted(runtime.resume() for runtime in runtimes) == [0, 1000]
    assert [runtime.info().errors for runtime in runtimes] == [0, 0]


REJECTING = """
do
  local nf = require "netfilter"
  nf.register{pf = nf.family.IPV4, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
              onerror = "drop", hook = function(skb) return skb:reject() end}
end
"""


def _send_udp():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", 9))


def test_errno_of_a_prohibited_connection(policy, router):
    policy("return skb:reject('admin-prohibited')")
    with router["client"].socket() as client:
        client.settimeout(30)
        assert client.connect_ex((router["server"].address(), 7202)) in (
            errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES,
        )  # fmt: skip


@pytest.mark.stock_kernel("its reject modules are built in")
@pytest.mark.kernel(alone=True)
def test_modules_that_are_missing_are_asked_for_once_and_found_when_they_come(tmp_path):
    asked = tmp_path / "asked"
    loader = tmp_path / "loader"
    loader.write_text(f'#!/bin/sh\necho "$*" >> {asked}\nexit 1\n')
    loader.chmod(0o755)
    path = Path("/proc/sys/kernel/modprobe")
    usual = path.read_text()
    subprocess.run(["modprobe", "-r", "nf_reject_ipv4", "nf_reject_ipv6"], check=True)
    path.write_text(str(loader))
    try:
        with Lunatik.load() as lunatik:
            source = REJECTING * 5
            with lunatik.runtime("without", source=source, sleep=False) as runtime:
                with pytest.raises(PermissionError):
                    _send_udp()
                assert "its module nf_reject_ipv4 is missing" in runtime.info().last_error
            assert asked.read_text().count("symbol:nf_send") == 4
            subprocess.run(["modprobe", "nf_reject_ipv4"], check=True)
            with lunatik.runtime("with", source=source, sleep=False) as runtime:
                with pytest.raises(PermissionError):
                    _send_udp()
                assert runtime.info().last_error is None
            assert asked.read_text().count("symbol:nf_send") == 4
    finally:
        path.write_text(usual)
