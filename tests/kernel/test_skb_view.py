"""Views: parts of a packet as bytes, gone when the callback has returned."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel

both_versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module", autouse=True)
def sink(router):
    """A socket that takes what is sent to the server, which so has nothing to answer."""
    with ExitStack() as stack:
        taker = router["server"].socket(socket.AF_INET6, socket.SOCK_DGRAM, 0)
        stack.enter_context(taker).bind(("::", 9))
        yield


def _udp(version: int, payload: bytes = b"payload"):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    return (IPv6() if version == 6 else IP()) / UDP(sport=0x0102, dport=9) / payload


def _look(policy, traffic, body: str, version: int = 4, payload: bytes = b"payload"):
    runtime = policy(
        f"seen = table.pack((function() {body} end)()) return ACCEPT",
        before="local seen",
        after="coroutine.yield() return table.unpack(seen, 1, seen.n)",
    )
    outcome = traffic.send(_udp(version, payload))[0]
    assert runtime.info().errors == 0, runtime.info().last_error
    return outcome, runtime.resume()


@both_versions
def test_each_part_starts_where_its_header_does(policy, traffic, router, version):
    header = 40 if version == 6 else 20
    _, seen = _look(
        policy,
        traffic,
        """
        local net, mac = skb:data(), skb:data("mac")
        local transport, payload = skb:data("transport"), skb:data("payload")
        return #net, #mac, #transport, #payload, net:getuint8(0) >> 4,
          mac:getuint16be(12), transport:getuint16be(0), payload:getstring(0),
          mac:getstring(14, 1) == net:getstring(0, 1), mac:getstring(6, 6)
        """,
        version,
    )
    size = header + 8 + 7
    ethertype = 0x86DD if version == 6 else 0x0800
    client_mac = bytes.fromhex(router["client"].interfaces[0].mac.replace(":", ""))
    assert seen == (
        size, size + 14, 15, 7, version, ethertype, 0x0102, b"payload", True, client_mac,
    )  # fmt: skip


def test_the_parts_of_a_fragment(policy, traffic):
    from scapy.layers.inet import IP

    runtime = policy(
        """
        seen = {skb:data("mac") ~= nil, skb:data("transport") == nil,
                skb:data("payload") == nil}
        return ACCEPT
        """,
        before="local seen",
        after="coroutine.yield() return table.unpack(seen)",
    )
    traffic.send(IP(frag=1, proto=17) / b"12345678")
    assert runtime.resume() == (True, True, True)


def test_a_packet_that_is_sent_from_here_has_no_mac_header_yet(script, router):
    runtime = script(
        """
        local nf = require "netfilter"
        local seen
        nf.register{
          pf = nf.family.IPV4, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
          hook = function(skb)
            if skb:dport() == 9 then seen = skb:data("mac") == nil end
            return nf.action.ACCEPT
          end,
        }
        coroutine.yield()
        return seen
        """,
        sleep=False,
        netns=router["client"].netns,
    )
    with router["client"].socket(kind=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", (router["server"].address(), 9))
    assert runtime.resume() is True


@pytest.mark.parametrize("part", ["net", "mac", "transport", "payload"])
def test_a_view_kept_after_its_callback_raises(policy, traffic, part):
    runtime = policy(
        f'kept = skb:data("{part}") return ACCEPT',
        before="local kept",
        after="""
        coroutine.yield()
        local messages = {}
        for _, f in ipairs{function() return #kept end, function() return kept:getuint8(0) end,
                           function() return kept:getstring(0) end,
                           function() return kept:checksum() end,
                           function() kept:setuint8(0, 1) end,
                           function() kept:setstring(0, "") end} do
          messages[#messages + 1] = select(2, pcall(f))
        end
        return table.unpack(messages)
        """,
    )
    traffic.send(_udp(4))
    messages = runtime.resume()
    assert len(messages) == 6
    assert all(b"the view is gone" in message for message in messages), messages


def test_a_view_kept_until_the_next_packet_raises(policy, traffic):
    """The packet object is the same then, and so is the view, but nobody asked for it."""
    runtime = policy(
        """
        if kept then
          seen = select(2, pcall(kept.getuint8, kept, 0))
          again = skb:data("payload"):getstring(0)
        else
          kept = skb:data("payload")
        end
        return ACCEPT
        """,
        before="local kept, seen, again",
        after="coroutine.yield() return seen, again",
    )
    traffic.send([_udp(4, b"first"), _udp(4, b"second")])
    message, again = runtime.resume()
    assert b"the view is gone" in message
    assert again == b"second"


def test_a_view_outlives_its_packet_object_safely(script, router, traffic):
    """Nothing but the view holds the packet object once its hook's runtime dropped it."""
    runtime = script(
        """
        local nf = require "netfilter"
        local kept = {}
        nf.register{
          pf = nf.family.IPV4, hooknum = nf.inet_hooks.FORWARD, priority = 0,
          hook = function(skb)
            kept[1] = skb:data()
            return nf.action.ACCEPT
          end,
        }
        coroutine.yield()
        for _ = 1, 10 do collectgarbage() end
        return select(2, pcall(function() return #kept[1] end))
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    traffic.send(_udp(4))
    assert b"the view is gone" in runtime.resume()


@pytest.mark.parametrize(
    "access",
    ["getuint8(#view)", "getuint8(-1)", "getuint16(#view - 1)", "getuint32be(#view - 3)",
     "getuint64(math.maxinteger)", "getint8(math.mininteger)", "getstring(#view + 1)",
     "getstring(0, #view + 1)", "setuint8(#view, 1)", "setuint8(-1, 1)",
     "setuint32(#view - 3, 1)", "setstring(#view - 1, 'xy')", "setstring(-1, 'x')",
     "checksum(0, #view + 1)"],
)  # fmt: skip
@pytest.mark.parametrize("part", ["net", "payload", "mac"])
def test_an_access_outside_the_view_raises_and_changes_nothing(policy, traffic, access, part):
    runtime = policy(f'local view = skb:data("{part}") view:{access} return ACCEPT')
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED
    info = runtime.info()
    assert info.errors == 1
    assert "is outside the view of" in info.last_error


@both_versions
def test_writes_through_views_arrive(policy, traffic, version):
    from scapy.layers.inet import UDP

    outcome, seen = _look(
        policy,
        traffic,
        """
        local payload = skb:data("payload")
        payload:setuint8(0, 0x41)
        payload:setuint16be(1, 0x4243)
        payload:setuint32le(3, 0x47464544)
        skb:checksum()
        return payload:getstring(0), skb:payload(), skb:string(#skb - 7)
        """,
        version,
    )
    assert seen == (b"ABCDEFG",) * 3
    assert bytes(outcome.seen[UDP].payload) == b"ABCDEFG"


def test_a_header_that_is_written_is_read_again(policy, traffic):
    """Fields by name follow what was written through a view."""
    _, seen = _look(
        policy,
        traffic,
        """
        local before = skb:protocol()
        local transport = skb:data("transport")
        skb:data():setuint8(9, 6)      -- TCP, whose header the payload cannot hold
        local between, payload = skb:protocol(), skb:payload()
        skb:data():setuint8(0, 0x10)   -- no IP at all
        local none, size = skb:protocol(), #transport
        local ok = pcall(transport.getuint8, transport, 0)
        skb:data():setuint8(0, 0x45)
        skb:data():setuint8(9, 17)
        return before, between, payload, none, size, ok, skb:protocol(), skb:dport()
        """,
    )
    assert seen == (17, 6, None, None, 0, False, 17, 9)


def test_the_link_layer_header_can_be_written(script, traffic, router):
    """What is written there at FORWARD is replaced by the router's own header."""
    runtime = script(
        """
        local nf = require "netfilter"
        local seen
        nf.register{
          pf = nf.family.IPV4, hooknum = nf.inet_hooks.FORWARD, priority = 0,
          hook = function(skb)
            local mac = skb:data("mac")
            mac:setstring(0, "abcdefghijkl")
            mac:setstring(12, mac:getstring(12, 4))   -- across the border
            seen = mac:getstring(0, 12)
            return nf.action.ACCEPT
          end,
        }
        coroutine.yield()
        return seen
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED
    assert runtime.resume() == b"abcdefghijkl"


def test_copy_is_a_data_object_that_outlives_the_packet(policy, traffic):
    runtime = policy(
        """
        copy = skb:copy()
        skb:data("payload"):setuint8(0, 0x21)
        skb:checksum()
        return ACCEPT
        """,
        before="local copy",
        after="coroutine.yield() return #copy, copy:getstring(28), copy:getuint8(9)",
    )
    traffic.send(_udp(4))
    assert runtime.resume() == (35, b"payload", 17)


def test_the_checksum_of_a_view(policy, traffic):
    """Over a header that holds its sum, it is zero (RFC 1071)."""
    _, seen = _look(policy, traffic, "return skb:data():checksum(0, 20)")
    assert seen == 0


def test_views_cost_no_memory_per_packet(policy, traffic):
    runtime = policy(
        """
        local n = skb:data():getuint8(0) + skb:data("payload"):getuint8(0)
        return n > 0 and ACCEPT or DROP
        """,
        after="collectgarbage('stop') coroutine.yield()",
    )
    traffic.send([_udp(4)] * 2)
    before = runtime.info().memory_bytes
    traffic.send([_udp(4)] * 20)
    assert runtime.info().memory_bytes == before
    assert runtime.info().calls == 22
