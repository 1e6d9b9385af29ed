"""Topologies: hosts in a row, each a network namespace, joined by veth pairs.

    with Topology.router() as topology:
        print(topology.drawing())
        topology["client"].run(["ping", "-c1", topology["server"].address()])

Links are quiet, so that every packet in a capture is somebody's: static neighbours
(no ARP, no neighbour discovery, no multicast listener reports), no duplicate address
detection, no router solicitations, no link-local addresses.

Sources: veth(4), ip-sysctl (Documentation/networking/ip-sysctl.rst, Linux 6.12).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, TopologyError
from netns import namespace, offload, owner
from netns.host import Host
from netns.plan import PREFIX_LENGTHS, Plan, chain, drawing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType
    from typing import Self

    from netns.plan import Interface, Link

_LOOPBACK = 1  # the index of lo in every namespace
_IFF_UP = 0x1
_IFF_NOARP = 0x80
_IFF_MULTICAST = 0x1000
# Both ends of a pair get the same number if the kernel chooses in fresh namespaces; it
# then takes them for no pair, and needs a second to notice that the link is up
# (net/core/link_watch.c, linkwatch_urgent_event).
_FIRST_INDEX = 100
_UP_DEADLINE_S = 60.0

# Written in each namespace before it has links.
_SYSCTLS = {
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/dad_transmits": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/router_solicitations": "0",
    "ipv6/auto_flowlabels": "0",
    "ipv6/icmp/ratemask": "\n",  # no limit on ICMP errors of any type
    "ipv4/icmp_ratemask": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
}
# Only without link-local addresses is a link silent; neighbour discovery needs them.
_SILENT_SYSCTLS = {"ipv6/conf/default/addr_gen_mode": "1"}
_ROUTER_SYSCTLS = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}


class Topology:
    """Hosts in a row, built all or nothing when entered, gone when left.

    ``topology["client"]`` is a host; iteration goes from client to server. Leaving by
    exception, Ctrl-C or SIGTERM removes everything; what a killed process leaves is
    removed by ``netns.clean_leftovers``.
    """

    def __init__(self, plan: Plan, *, static_neighbours: bool = True) -> None:
        """Prepare; nothing is built yet. Without static neighbours the hosts use ARP and ND."""
        self.plan = plan
        self.static_neighbours = static_neighbours
        self._hosts: dict[str, Host] = {}
        self._stack = ExitStack()

    @classmethod
    def pair(cls, *, static_neighbours: bool = True) -> Self:
        """Two hosts, client and server, on one link."""
        return cls(chain("client", "server"), static_neighbours=static_neighbours)

    @classmethod
    def router(cls, *, static_neighbours: bool = True) -> Self:
        """A client and a server with a router, which forwards, between them."""
        return cls(chain("client", "router", "server"), static_neighbours=static_neighbours)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(_termination_unwinds())
            run = owner.claim()
            # Registered before anything is made: removal goes by prefix, so a signal
            # between making a namespace and noting it leaves nothing either.
            stack.callback(_remove, run, self._hosts)
            self._build(run)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def __getitem__(self, name: str) -> Host:
        """The host of that name; raises TopologyError for any other."""
        try:
            return self._hosts[name]
        except KeyError:
            known = ", ".join(self._hosts) or "none: the topology is not entered"
            raise TopologyError(f"no host {name!r} in this topology (hosts: {known})") from None

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    @property
    def client(self) -> Host:
        """The first host of the chain."""
        return self[self.plan.hosts[0]]

    @property
    def server(self) -> Host:
        """The last host of the chain."""
        return self[self.plan.hosts[-1]]

    def drawing(self) -> str:
        """Draw the hosts, links and addresses as text; see ``netns.plan.drawing``."""
        return drawing(self.plan)

    def _build(self, run: owner.Run) -> None:
        try:
            for name in self.plan.hosts:
                self._make_host(name, f"{run.prefix}{name}")
            for link in self.plan.links:
                self._join(link)
            # Each host finishes a phase before any starts the next: a link is up only
            # when both its ends are.
            for phase in (self._bring_up, _wait_until_up, self._add_routes):
                for host in self:
                    phase(host)
        except BridgeError:
            raise
        except Exception as error:
            raise TopologyError(
                f"cannot build the topology: {error}",
                cure="the kernel needs veth (modprobe veth) and IPv6; the lab has both",
            ) from error

    def _make_host(self, name: str, netns_name: str) -> None:
        path = namespace.create(netns_name)
        with namespace.entered(path):
            _write_sysctls(_SYSCTLS)
            if self.static_neighbours:
                _write_sysctls(_SILENT_SYSCTLS)
        interfaces = self.plan.interfaces(name)
        peers = [self.plan.peer(one) for one in interfaces] if self.static_neighbours else []
        neighbours = {one.ipv4: one.mac for one in peers} | {one.ipv6: one.mac for one in peers}
        self._hosts[name] = Host(name, netns_name, interfaces, neighbours)

    def _join(self, link: Link) -> None:
        """Make the veth pair inside the left host, its other end inside the right."""
        left, right = self.plan.hosts[link.number : link.number + 2]
        target = os.open(self[right].path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with _netlink(self[left]) as netlink:
                netlink.link(
                    "add",
                    kind="veth",
                    ifname=link.left.name,
                    address=link.left.mac,
                    index=_FIRST_INDEX + link.number,
                    peer={
                        "ifname": link.right.name,
                        "address": link.right.mac,
                        "net_ns_fd": target,
                    },
                )
        finally:
            os.close(target)

    def _bring_up(self, host: Host) -> None:
        with _netlink(host) as netlink:
            netlink.link("set", index=_LOOPBACK, state="up")
            for interface in host.interfaces:
                index = host.index(interface.name)
                with host.entered():
                    offload.switch_off(interface.name)
                self._set_up(netlink, index)
                for address, version in ((interface.ipv4, 4), (interface.ipv6, 6)):
                    length = PREFIX_LENGTHS[version]
                    netlink.addr("add", index=index, address=address, prefixlen=length)
                if self.static_neighbours:
                    _add_neighbours(netlink, self.plan.peer(interface), index)
            if self.plan.is_router(host.name):
                with host.entered():
                    _write_sysctls(_ROUTER_SYSCTLS)

    def _set_up(self, netlink: Any, index: int) -> None:
        """Set the interface up, silently where neighbours are static.

        An interface that resolves no addresses (NOARP) joins no solicited-node groups,
        and one without multicast joins no routers' groups; so the kernel has nothing to
        report to multicast listeners, as it otherwise does at random in the first
        seconds (net/ipv6/mcast.c).
        """
        flags = _IFF_UP | (_IFF_NOARP if self.static_neighbours else _IFF_MULTICAST)
        change = _IFF_UP | _IFF_NOARP | _IFF_MULTICAST
        netlink.link("set", index=index, flags=flags, change=change)

    def _add_routes(self, host: Host) -> None:
        """Route to each network further along the chain by the next host that way."""
        left, right = self.plan.left_of(host.name), self.plan.right_of(host.name)
        with _netlink(host) as netlink:
            for link in self.plan.links:
                if right is not None and link.number > right.number:
                    gateway = right.right
                elif left is not None and link.number < left.number:
                    gateway = left.left
                else:
                    continue
                netlink.route("add", dst=link.network(4), gateway=gateway.ipv4)
                netlink.route("add", dst=link.network(6), gateway=gateway.ipv6)


def _add_neighbours(netlink: Any, peer: Interface, index: int) -> None:
    for address in (peer.ipv4, peer.ipv6):
        netlink.neigh("add", dst=address, lladdr=peer.mac, ifindex=index, state="permanent")


def _remove(run: owner.Run, hosts: dict[str, Host]) -> None:
    """Take everything down; a second Ctrl-C waits until that is done."""
    if os.getpid() != run.owner_pid:
        return
    interrupts = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)
    try:
        for host in hosts.values():
            host.close()
        hosts.clear()
        run.release()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, where nobody handles them.

    Only the main thread may set handlers; elsewhere the signals keep their meaning.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    changed = []
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _exit_by_signal)
                changed.append(number)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _exit_by_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _netlink(host: Host) -> Iterator[Any]:
    """Open a route netlink socket inside the host.

    The socket is made in the entered namespace, which works alike in every release of
    pyroute2; only 0.9 and later take a namespace as an argument.
    """
    # It takes a tenth of a second to import, so only where it is needed.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with host.entered():
        netlink = IPRoute()
    with netlink:
        yield netlink


def _write_sysctls(settings: dict[str, str]) -> None:
    for key, value in settings.items():
        try:
            Path("/proc/sys/net", key).write_text(value)
        except OSError as error:
            raise TopologyError(
                f"cannot set net/{key}: {error.strerror}",
                cure="the kernel needs IPv6 and a writable /proc/sys; the lab has both",
            ) from error


def _wait_until_up(host: Host) -> None:
    """Wait until the kernel has noticed that the host's links are up."""
    deadline = time.monotonic() + _UP_DEADLINE_S
    with _netlink(host) as netlink:
        while not _links_are_up(netlink):
            if time.monotonic() > deadline:
                raise TopologyError(f"the links of {host.name} do not come up")
            time.sleep(0.001)


def _links_are_up(netlink: Any) -> bool:
    links = [link for link in netlink.get_links() if link["index"] != _LOOPBACK]
    return all(link.get_attr("IFLA_OPERSTATE") == "UP" for link in links)
