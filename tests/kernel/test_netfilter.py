"""Families, places and verdicts of netfilter.register, with real queues and bridges."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bridge.errors import LuaError
from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel

both_versions = pytest.mark.parametrize("version", [4, 6])
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

# include/uapi/linux/netfilter*.h, Linux 6.12
CONSTANTS = {
    "family": {
        "UNSPEC": 0, "INET": 1, "IPV4": 2, "ARP": 3, "NETDEV": 5, "BRIDGE": 7, "IPV6": 10,
    },
    "action": {"DROP": 0, "ACCEPT": 1, "STOLEN": 2, "QUEUE": 3, "REPEAT": 4, "STOP": 5},
    "inet_hooks": {
        "PRE_ROUTING": 0, "LOCAL_IN": 1, "FORWARD": 2, "LOCAL_OUT": 3, "POST_ROUTING": 4,
        "INGRESS": 5,
    },
    "bridge_hooks": {
        "PRE_ROUTING": 0, "LOCAL_IN": 1, "FORWARD": 2, "LOCAL_OUT": 3, "POST_ROUTING": 4,
    },
    "arp_hooks": {"IN": 0, "OUT": 1, "FORWARD": 2},
    "netdev_hooks": {"INGRESS": 0, "EGRESS": 1},
    "ip_priority": {
        "FIRST": -(1 << 31), "RAW_BEFORE_DEFRAG": -450, "CONNTRACK_DEFRAG": -400, "RAW": -300,
        "SELINUX_FIRST": -225, "CONNTRACK": -200, "MANGLE": -150, "NAT_DST": -100, "FILTER": 0,
        "SECURITY": 50, "NAT_SRC": 100, "SELINUX_LAST": 225, "CONNTRACK_HELPER": 300,
        "CONNTRACK_CONFIRM": (1 << 31) - 1, "LAST": (1 << 31) - 1,
    },
    "bridge_priority": {
        "FIRST": -(1 << 31), "NAT_DST_BRIDGED": -300, "FILTER_BRIDGED": -200, "BRNF": 0,
        "NAT_DST_OTHER": 100, "FILTER_OTHER": 200, "NAT_SRC": 300, "LAST": (1 << 31) - 1,
    },
    "tcp_flags": {
        "FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ECE": 64, "CWR": 128,
    },
}  # fmt: skip
SHORT = {
    "proto": "family", "action": "action", "inet": "inet_hooks", "netdev": "netdev_hooks",
    "arp": "arp_hooks", "ip.pri": "ip_priority", "br": "bridge_hooks",
    "br.pri": "bridge_priority",
}  # fmt: skip


@pytest.mark.parametrize(
    ("library", "path", "expected"),
    [("netfilter", name, CONSTANTS[name]) for name in CONSTANTS]
    + [("linux.nf", short, CONSTANTS[name]) for short, name in SHORT.items()],
)
def test_constants_have_the_kernels_values(script, library, path, expected):
    runtime = script(
        f"""
        coroutine.yield()
        local names = {{}}
        for name, value in pairs(require("{library}").{path}) do
          if math.type(value) == "integer" then names[#names + 1] = name .. "=" .. value end
        end
        return table.concat(names, " ")
        """
    )
    pairs = (pair.split("=") for pair in runtime.resume().decode().split())
    assert {name: int(value) for name, value in pairs} == expected


# NFQUEUE: include/uapi/linux/netfilter/nfnetlink_queue.h

_QUEUE_SUBSYSTEM = 3
_PACKET, _VERDICT, _CONFIG = 0, 1, 2


def _attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + bytes(-size % 4)


class Queue:
    """A program that takes a queue's packets and gives them back, in a thread."""

    def __init__(self, place, number: int, handle: Callable[[bytes], tuple[int, bytes | None]]):
        self.number = number
        self.seen: list[bytes] = []
        self._handle = handle
        self._running = True
        with place:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self._socket.bind((0, 0))
        self._socket.settimeout(10)
        self._request(_CONFIG, _attribute(1, struct.pack("=BBH", 1, 0, 0)), ack=True)
        self._request(_CONFIG, _attribute(2, struct.pack(">IB", 0xFFFF, 2)), ack=True)
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()
        self._socket.close()

    def _request(self, message: int, attributes: bytes, *, ack: bool = False) -> None:
        body = struct.pack(">BBH", 0, 0, self.number) + attributes
        flags = 1 | (4 if ack else 0)
        head = struct.pack(
            "=IHHII", 16 + len(body), _QUEUE_SUBSYSTEM << 8 | message, flags, 0, 0
        )
        self._socket.send(head + body)
        if ack:
            (code,) = struct.unpack_from("=i", self._socket.recv(65536), 16)
            assert code == 0, f"nfnetlink_queue: errno {-code}"

    def _serve(self) -> None:
        while self._running:
            try:
                self._take(self._socket.recv(1 << 17))
            except TimeoutError:
                continue

    def _take(self, message: bytes) -> None:
        if struct.unpack_from("=H", message, 4)[0] != _QUEUE_SUBSYSTEM << 8 | _PACKET:
            return  # an error: the packet is no longer there
        attributes, offset = {}, 20
        while offset < len(message):
            size, kind = struct.unpack_from("=HH", message, offset)
            attributes[kind] = message[offset + 4 : offset + size]
            offset += (size + 3) & ~3
        identifier = attributes[1][:4]
        self.seen.append(attributes[10])
        verdict, changed = self._handle(attributes[10])
        answer = _attribute(2, struct.pack(">I", verdict) + identifier)
        self._request(_VERDICT, answer + (_attribute(10, changed) if changed else b""))


@pytest.fixture
def queue(router) -> Iterator[Callable[..., Queue]]:
    with ExitStack() as stack:
        yield lambda number, handle: stack.enter_context(
            Queue(router["router"].entered(), number, handle)
        )


@pytest.fixture(scope="module", autouse=True)
def sink(router) -> Iterator[None]:
    """A socket that takes what is sent to the server, which so has nothing to answer."""
    with router["server"].socket(socket.AF_INET6, socket.SOCK_DGRAM) as taker:
        taker.bind(("::", 9))
        yield


def _udp(version: int, payload: bytes = b"payload"):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    return (IPv6() if version == 6 else IP()) / UDP(sport=4000, dport=9) / payload


@both_versions
@pytest.mark.parametrize("number", [0, 7, 65535])
def test_a_queued_packet_goes_to_the_program_of_its_queue_and_on(
    policy, traffic, queue, version, number
):
    policy(f"return netfilter.queue({number})")
    others = [queue(other, lambda _: (1, None)) for other in (1, 8)]
    listener = queue(number, lambda _: (1, None))
    outcome = traffic.send(_udp(version), settle_s=30)[0]
    assert outcome.verdict == Verdict.ACCEPTED
    assert len(listener.seen) == 1
    assert listener.seen[0].endswith(b"payload")
    assert not [packet for other in others for packet in other.seen]


@both_versions
def test_the_programs_verdict_and_changes_count(policy, traffic, queue, version):
    policy("return netfilter.queue(3)")

    def handle(packet: bytes) -> tuple[int, bytes | None]:
        if packet.endswith(b"dropme"):
            return 0, None
        from scapy.layers.inet import IP, UDP
        from scapy.layers.inet6 import IPv6

        changed = (IPv6 if version == 6 else IP)(packet)
        changed[UDP].payload.load = b"CHANGED"
        del changed[UDP].chksum
        return 1, bytes(changed)

    queue(3, handle)
    assert traffic.send(_udp(version, b"dropme"), settle_s=1)[0].verdict == Verdict.DROPPED
    outcome = traffic.send(_udp(version), settle_s=30)[0]
    assert outcome.verdict == Verdict.CHANGED
    assert bytes(outcome.seen["UDP"].payload) == b"CHANGED"


def test_a_queue_without_program_drops_unless_it_may_be_bypassed(policy, traffic):
    dropping = policy("return netfilter.queue(11)")
    assert traffic.send(_udp(4))[0].verdict == Verdict.DROPPED
    assert dropping.info().errors == 0
    dropping.stop()
    policy("return netfilter.queue(11, true)")
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


def test_a_stopped_runtime_leaves_nothing_in_the_queue(policy, traffic, queue):
    """The kernel drops what waits for a hook that goes away."""
    # 6.1 warns of itself where no hook is left (nf_reinject() in net/netfilter/nf_queue.c).
    policy("return netfilter.action.ACCEPT")
    runtime = policy("return netfilter.queue(12)")
    release = threading.Event()

    def handle(_: bytes) -> tuple[int, None]:
        release.wait(60)
        return 1, None

    queue(12, handle)
    traffic.send(_udp(4))
    runtime.stop()
    release.set()
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED


@pytest.mark.parametrize("number", ["-1", "65536", "'x'"])
def test_a_bad_number_of_a_queue_is_named(script, number):
    with pytest.raises(LuaError, match=r"a queue's number is 0 to 65535|number expected"):
        script(f"require('netfilter').queue({number})")


@pytest.mark.parametrize("verdict", ["STOLEN", "REPEAT", "STOP"])
def test_verdicts_a_script_cannot_honour_are_refused(policy, traffic, verdict):
    runtime = policy(f"return netfilter.action.{verdict}")
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED
    assert "none of accept, drop and queue" in runtime.info().last_error


# Bridges


STATIONS = {4: ("10.1.0.1", "10.1.0.2", "10.1.0.9"), 6: ("fd01::1", "fd01::2", "fd01::9")}


class Lan:
    """Two stations on a bridge, each in a namespace of its own, found by ARP and ND."""

    def __init__(self, prefix: str = "lan") -> None:
        self.left, self.bridge, self.right = (f"{prefix}-{name}" for name in "lbr")

    def ip(self, netns: str, *arguments: str) -> None:
        subprocess.run(["ip", "-n", netns, *arguments], check=True)

    def run(
        self, netns: str, *command: str, **options: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", netns, *command],
            capture_output=True,
            text=True,
            check=False,
        )

    def __enter__(self) -> Lan:
        for netns in (self.left, self.bridge, self.right):
            subprocess.run(["ip", "netns", "add", netns], check=True)
        self.ip(self.bridge, "link", "add", "br0", "type", "bridge")
        for netns, port, number in ((self.left, "p1", 1), (self.right, "p2", 2)):
            self.ip(self.bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0",
                    "netns", netns)  # fmt: skip
            self.ip(self.bridge, "link", "set", port, "master", "br0", "up")
            self.ip(netns, "link", "set", "eth0", "up")
            self.ip(netns, "addr", "add", f"10.1.0.{number}/24", "dev", "eth0")
            self.ip(netns, "addr", "add", f"fd01::{number}/64", "dev", "eth0", "nodad")
        self.ip(self.bridge, "link", "set", "br0", "up")
        self.ip(self.bridge, "addr", "add", "10.1.0.9/24", "dev", "br0")
        self.ip(self.bridge, "addr", "add", "fd01::9/64", "dev", "br0", "nodad")
        return self

    def __exit__(self, *_: object) -> None:
        for netns in (self.left, self.bridge, self.right):
            subprocess.run(["ip", "netns", "del", netns], check=True)

    def entered(self, netns: str):
        from netns.namespace import DIRECTORY, entered

        return entered(DIRECTORY / netns)

    def socket(self, netns: str, *kind: int) -> socket.socket:
        with self.entered(netns):
            return socket.socket(*kind)

    def index(self, port: str) -> int:
        with self.entered(self.bridge):
            return socket.if_nametoindex(port)

    def mac(self, netns: str) -> str:
        return self.run(netns, "ip", "-br", "link", "show", "eth0").stdout.split()[2]

    def ping(self, source: str, address: str) -> bool:
        done = self.run(source, "ping", "-c1", "-W2", address)
        return "1 received" in done.stdout

    def recover(self) -> bool:
        """Whether left reaches right again: a host remembers for seconds who is silent."""
        return any(self.ping(self.left, "10.1.0.2") for _ in range(10))


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as built:
        yield built


BRIDGE = """
local nf = require "netfilter"
local seen
nf.register{{
  pf = nf.family.{family}, hooknum = nf.{hooks}.{hook}, priority = 0, onerror = "drop",
  {extra}
  hook = function(skb)
    {body}
    return nf.action.ACCEPT
  end,
}}
coroutine.yield()
return {result}
"""


@pytest.fixture
def at(script, lan):
    """Put the body of a callback somewhere in the bridge's namespace, or a station's."""

    def at(hook: str, body: str, result: str = "seen", *, family: str = "BRIDGE",
           hooks: str = "bridge_hooks", extra: str = "", netns: str | None = None):  # fmt: skip
        source = BRIDGE.format(
            family=family, hooks=hooks, hook=hook, body=body, result=result, extra=extra
        )
        return script(source, sleep=False, netns=netns or lan.bridge)

    return at


@both_versions
@pytest.mark.parametrize("hook", ["PRE_ROUTING", "FORWARD", "POST_ROUTING"])
def test_bridged_packets_are_seen_and_dropped(at, lan, version, hook):
    target = STATIONS[version][1]
    protocol = 58 if version == 6 else 1
    runtime = at(
        hook,
        f"""
        local kind = skb:icmp()
        if skb:protocol() == {protocol} and (kind == 8 or kind == 128) then
          seen = {{skb:family(), skb:ethertype(), #skb:data("mac") - #skb,
                  skb:payload(0, 1) ~= nil}}
          if block then return nf.action.DROP end
        end
        """,
        "(function(...) block = ... return table.unpack(seen, 1, 4) end)(true)",
    )
    assert lan.ping(lan.left, target)
    assert runtime.info().errors == 0, runtime.info().last_error
    family, ethertype = (10, 0x86DD) if version == 6 else (2, 0x0800)
    assert runtime.resume() == (family, ethertype, 14, True)
    assert not lan.ping(lan.left, target)


@both_versions
@pytest.mark.parametrize(("hook", "from_bridge"), [("LOCAL_IN", False), ("LOCAL_OUT", True)])
def test_packets_to_and_from_the_bridge_itself(at, lan, version, hook, from_bridge):
    protocol = 58 if version == 6 else 1
    at(hook, f"if skb:protocol() == {protocol} and (skb:icmp() == 8 or skb:icmp() == 128) then"
             " return nf.action.DROP end")  # fmt: skip
    source, index = (lan.bridge, 0) if from_bridge else (lan.left, 2)
    assert not lan.ping(source, STATIONS[version][index])


def test_a_bridged_packet_is_queued_and_goes_on(at, lan):
    runtime = at(
        "FORWARD",
        "if skb:protocol() == 1 and skb:icmp() == 8 then return nf.queue(21) end",
    )

    with Queue(lan.entered(lan.bridge), 21, lambda _: (1, None)) as listener:
        assert lan.ping(lan.left, "10.1.0.2")
        assert len(listener.seen) == 1
    assert runtime.info().errors == 0
    assert not lan.ping(lan.left, "10.1.0.2")


def test_bytes_of_bridged_packets_are_changed_with_their_link_layer(at, lan):
    """The frame goes to a station of another address, which so does not take it."""
    runtime = at(
        "PRE_ROUTING",
        """
        if skb:protocol() == 1 and skb:icmp() == 8 then
          local mac = skb:data("mac")
          seen = mac:getstring(0, 6)
          mac:setstring(0, "\\2\\0\\0\\0\\0\\x77")
        end
        """,
    )
    assert not lan.ping(lan.left, "10.1.0.2")
    assert runtime.info().errors == 0, runtime.info().last_error
    assert runtime.resume() == bytes.fromhex(lan.mac(lan.right).replace(":", ""))


@pytest.mark.stock_kernel("its bridge cuts the padding off, with bridge netfilter built in")
def test_padding_belongs_to_the_frame_and_not_to_the_payload(at, lan):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    runtime = at(
        "FORWARD",
        "if skb:dport() == 4321 then seen = {#skb, #skb:payload(), skb:payload()} end",
        "table.unpack(seen)",
    )
    frame = (
        Ether(src=lan.mac(lan.left), dst="ff:ff:ff:ff:ff:ff")
        / IP(src="10.1.0.1", dst="10.1.0.2")
        / UDP(dport=4321)
    )
    _send_frame(lan, bytes(frame / b"abc") + b"PADDING")
    assert runtime.resume() == (20 + 8 + 3 + 7, 3, b"abc")


def test_the_tag_of_a_vlan_is_seen(at, lan):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Dot1Q, Ether

    runtime = at(
        "FORWARD",
        "if skb:dport() == 4321 then seen = {skb:vlan()} seen[3] = skb:ethertype() end",
        "table.unpack(seen)",
    )
    packet = IP(src="10.1.0.1", dst="10.1.0.2") / UDP(dport=4321) / b"abc"
    _send_frame(
        lan,
        bytes(
            Ether(src=lan.mac(lan.left), dst="ff:ff:ff:ff:ff:ff")
            / Dot1Q(vlan=1234, prio=5)
            / packet
        ),
    )
    assert runtime.resume() == (1234, 5, 0x0800)


def _send_frame(lan: Lan, frame: bytes) -> None:
    with lan.socket(lan.left, socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind(("eth0", 0))
        link.send(frame)


@pytest.mark.parametrize(
    ("hook", "station"), [("IN", "right"), ("OUT", "left")]
)  # fmt: skip
def test_arp_is_seen_with_its_addresses_and_dropped(at, lan, hook, station):
    netns = getattr(lan, station)
    lan.ip(lan.left, "neigh", "flush", "all")
    lan.ip(lan.right, "neigh", "flush", "all")
    runtime = at(
        hook,
        """
        seen = {skb:family(), skb:ethertype(), skb:u16(6), skb:string(24, 4), skb:saddr(),
                skb:protocol(), skb:data("transport")}
        do return nf.action.DROP end
        """,
        "seen[1], seen[2], seen[3], seen[4], seen[5], seen[6], seen[7]",
        family="ARP",
        hooks="arp_hooks",
        netns=netns,
    )
    assert not lan.ping(lan.left, "10.1.0.2")
    assert runtime.info().calls > 0
    family, ethertype, operation, target, *nothing = runtime.resume()
    assert (family, ethertype, operation) == (3, 0x0806, 1)
    assert target == bytes([10, 1, 0, 2])
    assert nothing == [None, None, None]
    runtime.stop()
    assert lan.recover()


def test_arp_packets_cannot_be_queued(at, lan):
    """The kernel could not go on with them later."""
    lan.ip(lan.left, "neigh", "flush", "all")
    runtime = at("OUT", "do return nf.queue(5, true) end", family="ARP", hooks="arp_hooks",
                 netns=lan.left)  # fmt: skip
    lan.ping(lan.left, "10.1.0.2")
    assert (
        "packets are queued at hooks of IPv4, IPv6 and bridges only"
        in runtime.info().last_error
    )


def test_rejecting_is_for_ip_hooks(at, lan):
    assert lan.recover()
    runtime = at("FORWARD", "if skb:protocol() == 1 then return skb:reject() end")
    assert not lan.ping(lan.left, "10.1.0.2")
    assert "of IPv4 and IPv6 only" in runtime.info().last_error


# Hooks at a device


NETDEV = {"family": "NETDEV", "hooks": "netdev_hooks"}


@both_versions
@pytest.mark.parametrize(
    ("place", "port"),
    [
        ({"family": "NETDEV", "hooks": "netdev_hooks", "hook": "INGRESS"}, "p1"),
        ({"family": "NETDEV", "hooks": "netdev_hooks", "hook": "EGRESS"}, "p2"),
        ({"family": "INET", "hooks": "inet_hooks", "hook": "INGRESS"}, "p1"),
    ],
)
def test_packets_are_seen_and_dropped_at_a_device(at, lan, version, place, port):
    protocol = 58 if version == 6 else 1
    runtime = at(
        body=f"""
        local kind = skb:icmp()
        if skb:protocol() == {protocol} and (kind == 8 or kind == 128) then
          seen = {{skb:family(), skb:ethertype(), #skb:data("mac") - #skb, 1,
                  select(2, skb:hook()), skb:ifindex(), skb:indev() or skb:outdev()}}
          if block then return nf.action.DROP end
        end
        """,
        result="(function(...) block = ... return table.unpack(seen) end)(true)",
        extra=f'device = "{port}",',
        **place,
    )
    assert lan.ping(lan.left, STATIONS[version][1]), runtime.info().last_error
    assert runtime.info().errors == 0, runtime.info().last_error
    family, ethertype = (10, 0x86DD) if version == 6 else (2, 0x0800)
    seen = runtime.resume()
    assert seen[:3] == (family, ethertype, 14)
    assert seen[4] == 5
    assert seen[5] == seen[6] == lan.index(port)
    assert not lan.ping(lan.left, STATIONS[version][1])


@pytest.mark.parametrize(("hook", "port"), [("INGRESS", "p1"), ("EGRESS", "p2")])
def test_packets_are_changed_at_a_device(at, lan, hook, port):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    runtime = at(
        hook,
        """
        if skb:dport() == 4323 then
          skb:data("payload"):setstring(0, "CHANGED")
          skb:dport(4322)
          skb:resize(#skb + 1)
        end
        """,
        extra=f'device = "{port}",',
        **NETDEV,
    )
    with lan.socket(lan.right, socket.AF_INET, socket.SOCK_DGRAM) as taker:
        taker.bind(("", 4322))
        taker.settimeout(20)
        packet = IP(src="10.1.0.1", dst="10.1.0.2") / UDP(sport=1, dport=4323) / b"as sent"
        _send_frame(lan, bytes(Ether(src=lan.mac(lan.left), dst=lan.mac(lan.right)) / packet))
        assert taker.recv(100) == b"CHANGED\0", runtime.info().last_error


def test_the_tag_of_a_vlan_is_seen_at_a_device(at, lan):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Dot1Q, Ether

    runtime = at(
        "INGRESS",
        "if skb:dport() == 4321 then seen = {skb:vlan()} seen[3] = skb:ethertype() end",
        "table.unpack(seen)",
        extra='device = "p1",',
        **NETDEV,
    )
    packet = IP(src="10.1.0.1", dst="10.1.0.2") / UDP(dport=4321) / b"abc"
    _send_frame(
        lan,
        bytes(
            Ether(src=lan.mac(lan.left), dst="ff:ff:ff:ff:ff:ff")
            / Dot1Q(vlan=77, prio=1)
            / packet
        ),
    )
    assert runtime.resume() == (77, 1, 0x0800)


def test_a_device_is_given_by_index_too(at, lan):
    runtime = at("INGRESS", "seen = true", extra=f"device = {lan.index('p1')},", **NETDEV)
    lan.ping(lan.left, "10.1.0.2")
    assert runtime.resume() is True


@pytest.mark.parametrize("verdict", ["nf.queue(3)", "skb:reject()"])
def test_what_a_device_hook_cannot_do_is_a_failure(at, lan, verdict):
    body = f"if skb:icmp() == 8 then return {verdict} end"
    runtime = at("INGRESS", body, extra='device = "p1",', **NETDEV)
    assert not lan.ping(lan.left, "10.1.0.2")
    assert "IPv4" in runtime.info().last_error


def test_a_device_that_goes_away_takes_its_hook_along(at, lan):
    lan.ip(lan.bridge, "link", "add", "fleeting", "type", "dummy")
    runtime = at("INGRESS", "", "true", extra='device = "fleeting",', **NETDEV)
    assert runtime.info().hooks == 1
    lan.ip(lan.bridge, "link", "del", "fleeting")
    assert runtime.info().hooks == 0
    assert runtime.resume() is True
    runtime.stop()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("pf = 5, hooknum = 0", "the field 'device' is missing"),
        ("pf = 5, hooknum = 1", "the field 'device' is missing"),
        ("pf = 1, hooknum = 5", "the field 'device' is missing"),
        ("pf = 5, hooknum = 2, device = 'lo'", "'hooknum' is 2, outside 0 to 1"),
        ("pf = 1, hooknum = 6", "'hooknum' is 6, outside 0 to 5"),
        ("pf = 2, hooknum = 5, device = 'lo'", "'hooknum' is 5, outside 0 to 4"),
        ("pf = 2, hooknum = 2, device = 'lo'", "'device' is for NETDEV and for INET's INGRESS"),
        ("pf = 5, hooknum = 0, device = 'nowhere0'", "no interface 'nowhere0'"),
        ("pf = 5, hooknum = 0, device = 99999", "no interface '99999'"),
        ("pf = 5, hooknum = 0, device = -1", "no interface '-1'"),
        ("pf = 5, hooknum = 0, device = {}", "'device' is a table"),
    ],
)
def test_a_bad_device_is_named(script, fields, message):
    source = f"""
    require("netfilter").register{{{fields}, priority = 0, hook = function() return 1 end}}
    """
    with pytest.raises(LuaError, match=message):
        script(source, sleep=False)


# The handle


def test_a_handle_unregisters_its_hook_and_no_other(script, traffic, router):
    runtime = script(
        """
        local nf = require "netfilter"
        local counts, handles = {0, 0}, {}
        for i = 1, 2 do
          handles[i] = nf.register{
            pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = i,
            hook = function()
              counts[i] = counts[i] + 1
              return nf.action.ACCEPT
            end,
          }
        end
        coroutine.yield()
        handles[1]:unregister()
        handles[1]:unregister()
        coroutine.yield()
        return counts[1], counts[2]
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    traffic.send(_udp(4))
    runtime.resume()
    traffic.send(_udp(4))
    assert runtime.resume() == (1, 2)
    deadline = time.monotonic() + 30
    while runtime.info().hooks != 1:  # Netfilter forgets it a moment later
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_callback_unregisters_its_own_hook(script, traffic, router):
    runtime = script(
        """
        local nf = require "netfilter"
        local handle, count = nil, 0
        handle = nf.register{
          pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
          hook = function(skb)
            count = count + 1
            handle:unregister()
            handle = nil
            collectgarbage()
            return skb:dport() == 9 and nf.action.DROP or nf.action.ACCEPT
          end,
        }
        coroutine.yield()
        return count
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    verdicts = [outcome.verdict for outcome in traffic.send([_udp(4), _udp(4), _udp(6)])]
    assert verdicts == [Verdict.DROPPED, Verdict.ACCEPTED, Verdict.ACCEPTED]
    assert runtime.info().errors == 0, runtime.info().last_error
    assert runtime.resume() == 1


def test_a_hook_unregistered_by_the_body_is_never_in_force(script, traffic, router):
    runtime = script(
        """
        local nf = require "netfilter"
        nf.register{
          pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0,
          hook = function() return nf.action.DROP end,
        }:unregister()
        """,
        sleep=False,
        netns=router["router"].netns,
    )
    assert traffic.send(_udp(4))[0].verdict == Verdict.ACCEPTED
    assert runtime.info().hooks == 0


@pytest.mark.parametrize("call", ["nf.register.unregister()", "handle.unregister(5)"])
def test_unregister_wants_its_handle(script, call):
    with pytest.raises(LuaError, match=r"lunatik.hook expected|attempt to index a function"):
        script(
            f"""
            local nf = require "netfilter"
            local handle = nf.register{{
              pf = nf.family.IPV4, hooknum = 0, priority = 0, hook = function() return 1 end,
            }}
            {call}
            """,
            sleep=False,
        )
