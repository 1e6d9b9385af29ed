from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from bridge.errors import EnvironmentLacking, TopologyError
from netns import Topology, namespace, offload, topology

if TYPE_CHECKING:
    from collections.abc import Callable

    Names: TypeAlias = Callable[[], set[str]]

pytestmark = pytest.mark.kernel


def test_hosts_are_where_their_records_say(router: Topology) -> None:
    for host in router:
        assert host.path.stat().st_ino == host.inode
        seen = host.run(["readlink", "/proc/self/ns/net"], check=True).stdout.strip()
        assert seen == f"net:[{host.inode}]"
        with host.entered():
            for interface in host.interfaces:
                assert socket.if_nametoindex(interface.name) == host.index(interface.name)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("static", [True, False])
def test_sockets_talk_at_once_across_the_router(family: int, *, static: bool) -> None:
    version = 4 if family == socket.AF_INET else 6
    with (
        Topology.router(static_neighbours=static) as built,
        built.server.socket(family, socket.SOCK_DGRAM) as theirs,
        built.client.socket(family, socket.SOCK_DGRAM) as ours,
    ):
        theirs.bind((built.server.address(version), 99))
        theirs.settimeout(60)
        ours.sendto(b"x", (built.server.address(version), 99))
        assert theirs.recv(9) == b"x"


def test_offloads_are_off_on_every_interface(router: Topology) -> None:
    for host in router:
        for interface in host.interfaces:
            with host.entered():
                state = offload.state(interface.name)
            assert len(state) == 6
            assert not any(state.values())


def test_the_offload_check_can_fail(router: Topology) -> None:
    with router.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (0x19, 0x24):  # ETHTOOL_SSG, which ETHTOOL_SGSO requires
            offload._ethtool(control, "eth0", command, 1)
        assert offload.state("eth0")["generic-segmentation-offload"]


def test_silent_links_carry_nothing_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = []
    join = Topology._join

    def listen_from_the_start(self: Topology, link: object) -> None:
        join(self, link)
        listener = self.client.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sockets.append(listener)

    monkeypatch.setattr(Topology, "_join", listen_from_the_start)
    with Topology.pair() as built:
        # The kernel spreads multicast listener reports over a second (net/ipv6/mcast.c).
        time.sleep(2.5)
        with sockets[0] as listener:
            listener.setblocking(False)
            seen = []
            try:
                while True:
                    seen.append(listener.recv(2000))
            except BlockingIOError:
                pass
            assert seen == []
            built.server.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def test_several_topologies_live_side_by_side(names_now: Names) -> None:
    before = names_now()
    with Topology.pair() as one, Topology.router() as other:
        names = [host.netns for built in (one, other) for host in built]
        assert len(set(names)) == 5
        assert names_now() - before == set(names)
    assert names_now() == before


@pytest.mark.parametrize("step", ["_make_host", "_join", "_bring_up", "_add_routes"])
@pytest.mark.parametrize("failure", [OSError(28, "injected"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(
    names_now: Names, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    before = names_now()
    done = getattr(Topology, step)
    calls = []

    def fail_at_the_second(self: Topology, *args: object) -> None:
        calls.append(names_now() - before)
        if len(calls) == 2:
            raise failure
        done(self, *args)

    monkeypatch.setattr(Topology, step, fail_at_the_second)
    expected = TopologyError if isinstance(failure, OSError) else KeyboardInterrupt
    words = "injected" if isinstance(failure, OSError) else None
    with pytest.raises(expected, match=words), Topology.router():
        pytest.fail("the topology was built")
    assert calls[1]
    assert names_now() == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_exception_inside_leaves_nothing_and_passes_through(names_now: Names) -> None:
    before = names_now()
    with pytest.raises(ZeroDivisionError), Topology.pair() as built:  # noqa: PT012
        built.client.popen(["sleep", "1000"])
        built.client.warm()
        inode = built.client.inode
        assert len(namespace.processes_inside(inode)) == 2
        1 / 0  # noqa: B018
    assert names_now() == before
    assert namespace.processes_inside(inode) == []


def test_the_thread_comes_home_from_a_namespace(router: Topology) -> None:
    home = Path("/proc/thread-self/ns/net").stat().st_ino
    with pytest.raises(ZeroDivisionError), router.client.entered():  # noqa: PT012
        assert Path("/proc/thread-self/ns/net").stat().st_ino == router.client.inode
        1 / 0  # noqa: B018
    assert Path("/proc/thread-self/ns/net").stat().st_ino == home


def test_a_topology_can_be_built_in_a_thread(names_now: Names) -> None:
    names: list[str] = []

    def build() -> None:
        with Topology.pair() as built:
            names.extend(host.netns for host in built)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert len(names) == 2
    assert not names_now() & set(names)


def test_a_program_that_does_not_exist_is_named(router: Topology) -> None:
    with pytest.raises(TopologyError, match="cannot run no-such-program in client"):
        router.client.run(["no-such-program"])


def test_a_program_left_with_open_pipes_is_ended_and_reaped() -> None:
    with Topology.pair() as built:
        pipe = subprocess.PIPE
        program = built.client.popen(["sleep", "1000"], stdin=pipe, stdout=pipe)
        program.stdin.write(b"never read")
    assert program.returncode == -signal.SIGKILL
    assert program.stdin.closed
    assert program.stdout.closed


def test_a_failing_program_is_an_error_only_if_checked(router: Topology) -> None:
    assert router.client.run(["false"]).returncode == 1
    with pytest.raises(TopologyError, match="failed with status 1"):
        router.client.run(["false"], check=True)


def test_a_program_that_hangs_is_ended(router: Topology) -> None:
    with pytest.raises(TopologyError, match=r"did not end within 0\.2 s"):
        router.client.run(["sleep", "1000"], timeout_s=0.2)
    assert namespace.processes_inside(router.client.inode) == []


def test_programs_get_input_and_give_output(router: Topology) -> None:
    assert router.server.run(["cat"], stdin="hello").stdout == "hello"


def test_an_unknown_host_is_refused_with_the_known_ones(router: Topology) -> None:
    with pytest.raises(TopologyError, match="client, router, server"):
        router["sever"]


def test_a_topology_that_is_not_entered_has_no_hosts() -> None:
    with pytest.raises(TopologyError, match="not entered"):
        Topology.pair()["client"]


def test_a_name_that_is_taken_is_refused(router: Topology) -> None:
    with pytest.raises(TopologyError, match="exists already"):
        namespace.create(router.client.netns)
    assert router.client.path.stat().st_ino == router.client.inode


def test_without_privilege_the_lab_is_recommended() -> None:
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            with Topology.pair():
                os._exit(1)
        except EnvironmentLacking as error:
            os._exit(0 if "lunabridge lab run" in str(error) else 2)
        except BaseException:  # noqa: BLE001
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_does_not_take_the_topology_down(router: Topology) -> None:
    pid = os.fork()
    if pid == 0:
        router.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(pid, 0)
    assert router.client.path.stat().st_ino == router.client.inode
    assert router.client.run(["true"]).returncode == 0


def test_a_link_that_never_comes_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_UP_DEADLINE_S", 0.05)
    monkeypatch.setattr(topology, "_links_are_up", lambda _netlink: False)
    with pytest.raises(TopologyError, match="do not come up"), Topology.pair():
        pytest.fail("the topology was built")
