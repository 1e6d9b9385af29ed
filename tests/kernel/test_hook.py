"""netfilter.register, the packet object, verdicts and the failure rule."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack

import pytest

from bridge.errors import LuaError, ModuleError
from bridge.lunatik import State
from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    """Sockets that take what is sent to the server, which so has nothing to answer."""
    with ExitStack() as stack:
        for port in (9, 0xABCD):
            taker = router["server"].socket(socket.AF_INET6, socket.SOCK_DGRAM, 0)
            stack.enter_context(taker).bind(("::", port))
        yield


both_versions = pytest.mark.parametrize("version", [4, 6])


def _udp(version: int, *, dport: int = 9, payload: bytes = b"payload") -> object:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    return (IPv6() if version == 6 else IP()) / UDP(sport=40000, dport=dport) / payload


@both_versions
@pytest.mark.parametrize(("verdict", "seen"), [("ACCEPT", "accepted"), ("DROP", "dropped")])
def test_the_verdict_decides_about_the_packet(policy, traffic, version, verdict, seen):
    policy(f"return {verdict}")
    assert traffic.send(_udp(version))[0].verdict == Verdict(seen)


def test_no_hook_runs_before_the_body_has_returned(script, router, traffic):
    source = """
    local nf = require "netfilter"
    nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
                hook = function() return nf.action.DROP end}
    error("on purpose")
    """
    with pytest.raises(LuaError, match="on purpose"):
        script(source, sleep=False, netns=router["router"].netns)
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


def test_stop_takes_the_hooks_out_of_force(policy, traffic):
    runtime = policy("return DROP")
    assert traffic.send(_udp(4))[0].verdict == Verdict.DROPPED
    runtime.stop()
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


def test_hooks_stay_in_force_when_a_resumed_body_fails(policy, traffic):
    runtime = policy("return DROP", after="coroutine.yield() error('later')")
    with pytest.raises(LuaError, match="later"):
        runtime.resume()
    assert runtime.info().state is State.FAILED
    assert traffic.send(_udp(4))[0].verdict == Verdict.DROPPED


@pytest.mark.parametrize("rule", ["accept", "drop"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("error('broken')", "broken"),
        ("return", "returned no verdict"),
        ("return nil", "returned no verdict"),
        ("return 'x'", "not an integer"),
        ("return '1'", "not an integer"),
        ("return {}", "not an integer"),
        ("return true", "not an integer"),
        ("return 2", "none of accept, drop and queue"),
        ("return 4", "none of accept, drop and queue"),
        ("return 5", "none of accept, drop and queue"),
        ("return -1", "none of accept, drop and queue"),
        ("return 1 << 40 | 1", "none of accept, drop and queue"),
        ("return ACCEPT, 'x'", "mark is not an integer"),
        ("return ACCEPT, -1", "mark does not fit"),
        ("error({})", "not a string"),
        ("error(nil)", "not a string"),
        ("error(5)", "not a string"),
    ],
)
def test_a_failed_callback_is_judged_by_its_rule_and_counted(
    policy, traffic, rule, body, message
):
    runtime = policy(body, extra=f'onerror = "{rule}",')
    expected = Verdict.DROPPED if rule == "drop" else Verdict.ACCEPTED
    assert traffic.send(_udp(4))[0].verdict == expected
    info = runtime.info()
    assert (info.calls, info.errors) == (1, 1)
    assert message in info.last_error


def test_a_failed_callback_accepts_by_default(policy, traffic):
    policy("error('x')")
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


def test_the_second_result_is_the_new_mark(policy, script, router, traffic):
    policy("return ACCEPT, 4294967295")
    later = script(
        """
        local nf = require "netfilter"
        local seen
        nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 10,
                    hook = function(skb) seen = skb:mark() return 1 end}
        coroutine.yield() return seen
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    traffic.send(_udp(4))
    assert later.resume() == 4294967295


def test_a_mark_in_the_registration_selects_packets(policy, script, router, traffic):
    marked = policy("return ACCEPT", extra="mark = 7,")
    unmarked = policy("return ACCEPT", extra="mark = 0,")
    traffic.send(_udp(4))
    assert (marked.info().calls, unmarked.info().calls) == (0, 1)
    policy("skb:mark(7) return ACCEPT", before="", extra="", name="marker")
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


def test_hooks_run_in_the_order_of_their_priority(script, router, traffic):
    runtime = script(
        """
        local nf = require "netfilter"
        local order = {}
        for _, priority in ipairs{20, -20, 0} do
          nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD,
                      priority = priority,
                      hook = function() order[#order + 1] = priority return 1 end}
        end
        coroutine.yield() return table.concat(order, " ")
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    assert runtime.info().hooks == 3
    traffic.send(_udp(4))
    assert runtime.resume() == b"-20 0 20"


@both_versions
def test_fields_are_read_in_network_order_from_the_network_header(policy, traffic, version):
    runtime = policy(
        """
        local start = skb:u8(0) >> 4 == 6 and 40 or 20
        seen = {#skb, skb:u16(start + 2), skb:u32(start + 8), skb:string(start + 8),
                skb:string(start + 8, 3), skb:string(#skb), skb:u8(#skb - 1)}
        return ACCEPT
        """,
        before="local seen",
        after="coroutine.yield() return table.unpack(seen)",
    )
    traffic.send(_udp(version, dport=0xABCD, payload=b"\x01\x02\x03\x04\0\xff"))
    size = (40 if version == 6 else 20) + 8 + 6
    assert runtime.resume() == (
        size, 0xABCD, 0x01020304, b"\x01\x02\x03\x04\0\xff", b"\x01\x02\x03", b"", 0xFF,
    )  # fmt: skip


@pytest.mark.parametrize(
    "access",
    [
        "skb:u8(#skb)", "skb:u8(-1)", "skb:u16(#skb - 1)", "skb:u32(#skb - 3)",
        "skb:u32(math.maxinteger)", "skb:u8(math.mininteger)", "skb:string(#skb + 1)",
        "skb:string(-1)", "skb:string(0, #skb + 1)", "skb:string(0, -1)",
        "skb:string(1, math.maxinteger)", "skb:string(math.maxinteger, 1)",
    ],
)  # fmt: skip
def test_an_access_outside_the_packet_is_a_lua_error(policy, traffic, access):
    runtime = policy(f"{access} return ACCEPT")
    traffic.send(_udp(4))
    info = runtime.info()
    assert info.errors == 1
    assert "outside the packet" in info.last_error


def test_a_packet_kept_after_its_callback_raises(policy, traffic):
    runtime = policy(
        "kept = skb return ACCEPT",
        before="local kept",
        after="coroutine.yield() return pcall(function() return kept:u8(0) end)",
    )
    traffic.send(_udp(4))
    ok, message = runtime.resume()
    assert ok is False
    assert b"the packet is gone" in message


def test_the_callback_sees_hook_and_interfaces(policy, router, traffic):
    runtime = policy(
        """
        local hook, pf = skb:hook()
        seen = {hook, pf, skb:indev(), skb:outdev()}
        return ACCEPT
        """,
        before="local seen",
        after="coroutine.yield() return table.unpack(seen)",
    )
    traffic.send(_udp(4))
    forward, ipv4 = 2, 2
    host = router["router"]
    assert runtime.resume() == (forward, ipv4, host.index("eth0"), host.index("eth1"))


def test_a_packet_object_shows_nothing_of_its_metatable(policy, traffic):
    runtime = policy("seen = getmetatable(skb) return ACCEPT", before="local seen",
                     after="coroutine.yield() return seen")  # fmt: skip
    traffic.send(_udp(4))
    assert runtime.resume() == b"lunatik.skb"


def test_a_packet_can_be_queued_to_user_space_without_listener(policy, traffic):
    policy("return 3 | 1 << 15 | 5 << 16")  # NF_QUEUE, bypass flag, queue 5
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("hooknum = 2, priority = 0, hook = f", "the field 'pf' is missing"),
        ("pf = 2, priority = 0, hook = f", "the field 'hooknum' is missing"),
        ("pf = 2, hooknum = 2, hook = f", "the field 'priority' is missing"),
        ("pf = 2, hooknum = 2, priority = 0", "the field 'hook' is a nil"),
        ("pf = 2, hooknum = 2, priority = 0, hook = 5", "the field 'hook' is a number"),
        ("pf = 'x', hooknum = 2, priority = 0, hook = f", "'pf' is a string"),
        ("pf = 99, hooknum = 2, priority = 0, hook = f", "'pf' is 99, outside"),
        ("pf = 0, hooknum = 0, priority = 0, hook = f", "no hooks for the family 0"),
        ("pf = 2, hooknum = 5, priority = 0, hook = f", "'hooknum' is 5, outside 0 to 4"),
        ("pf = 2, hooknum = -1, priority = 0, hook = f", "'hooknum' is -1"),
        ("pf = 3, hooknum = 3, priority = 0, hook = f", "'hooknum' is 3, outside 0 to 2"),
        ("pf = 2, hooknum = 2, priority = 1 << 31, hook = f", "'priority' is 2147483648"),
        ("pf = 2, hooknum = 2, priority = 0, hook = f, mark = -1", "'mark' is -1"),
        ("pf = 2, hooknum = 2, priority = 0, hook = f, prio = 1", "unknown field 'prio'"),
        ("pf = 2, hooknum = 2, priority = 0, hook = f, [1] = 1", "unknown field '.'"),
        ("pf = 2, hooknum = 2, priority = 0, hook = f, onerror = 'x'", "'onerror' is"),
    ],
)
def test_a_bad_registration_names_the_field(script, fields, message):
    source = f"local f = print require('netfilter').register{{{fields}}}"
    with pytest.raises(LuaError, match=message):
        script(source, sleep=False)


def test_more_hooks_than_the_kernel_takes_are_an_error_and_none_is_left(
    script, router, traffic
):
    source = """
    local nf = require "netfilter"
    for i = 1, 1025 do
      nf.register{pf = nf.family.IPV4, hooknum = nf.inet_hooks.FORWARD, priority = i,
                  hook = function() return nf.action.DROP end}
    end
    """
    with pytest.raises(ModuleError, match=r"cannot register a hook .pf 2, hooknum 2, priority"):
        script(source, sleep=False, netns=router["router"].netns)
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


def test_a_sleepable_runtime_cannot_register(script):
    with pytest.raises(LuaError, match="this runtime is sleepable"):
        script("require('netfilter').register{}")


def test_a_callback_cannot_register_require_or_create(policy, traffic):
    for body, message in (
        ("require('netfilter').register{}", "while the script's body first runs"),
        ("require('dns')", "while its script's body first runs"),
        ("lunatik.runtime('echo')", "creating a runtime sleeps"),
    ):
        runtime = policy(body)
        traffic.send(_udp(4))
        assert message in runtime.info().last_error
        runtime.stop()


@pytest.mark.parametrize("family", ["ARP", "BRIDGE"])
def test_other_families_register(script, family):
    source = f"""
    local nf = require "netfilter"
    nf.register{{pf = nf.family.{family}, hooknum = 0, priority = 0,
                 hook = function() return 1 end}}
    """
    assert script(source, sleep=False).info().hooks == 1


def test_arp_packets_reach_an_arp_hook(lunatik):
    from netns import Topology

    source = """
    local nf = require "netfilter"
    nf.register{pf = nf.family.ARP, hooknum = nf.arp_hooks.IN, priority = 0,
                hook = function() return nf.action.DROP end}
    """
    with (
        Topology.pair(static_neighbours=False) as topology,
        lunatik.runtime(
            "arp", source=source, sleep=False, netns=topology["server"].netns
        ) as arp,
    ):
        address = topology["server"].address()
        topology["client"].run(["ping", "-c1", "-W1", address])
        assert arp.info().calls >= 1


def test_a_hook_sees_only_its_own_namespace(lunatik, script, router, traffic):
    elsewhere = script(
        """
        local nf = require "netfilter"
        nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
                    hook = function() return nf.action.DROP end}
        """,
        sleep=False,
    )
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED
    assert elsewhere.info().calls == 0
    assert elsewhere.info().netns != router["router"].inode


def test_a_namespace_that_goes_away_stops_its_runtimes(lunatik):
    source = """
    local nf = require "netfilter"
    nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
                hook = function() return nf.action.ACCEPT end}
    coroutine.yield()
    """
    subprocess.run(["ip", "netns", "add", "going"], check=True)
    atomic = lunatik.runtime("going", source=source, sleep=False, netns="going")
    sleepable = lunatik.runtime("echo", netns="going")
    subprocess.run(["ip", "netns", "del", "going"], check=True)
    _wait_until(lambda: lunatik.info().runtimes == 0)
    assert lunatik.runtimes() == []
    atomic.stop()
    sleepable.stop()


def test_a_namespace_deleted_under_traffic_leaves_the_kernel_clean(lunatik):
    from bridge.traffic import Traffic
    from netns import Topology

    source = """
    local nf = require "netfilter"
    nf.register{pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
                hook = function(skb) return nf.action.ACCEPT end}
    """
    for _ in range(3):
        with Topology.router() as topology, Traffic(topology) as traffic:
            lunatik.runtime("live", source=source, sleep=False, netns=topology["router"].netns)
            assert traffic.ping("client", "server").received == 1
            flood = topology["client"].popen(
                ["ping", "-f", "-q", "-w", "5", topology["server"].address()],
                stdout=subprocess.DEVNULL,
            )
            traffic.ping("client", "server")
        flood.wait()
        _wait_until(lambda: lunatik.info().runtimes == 0)


def test_an_unknown_namespace_is_named(lunatik):
    from bridge.errors import UsageError

    with pytest.raises(UsageError, match="no network namespace nowhere"):
        lunatik.runtime("echo", netns="nowhere")


def _wait_until(condition, timeout_s: float = 30) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
