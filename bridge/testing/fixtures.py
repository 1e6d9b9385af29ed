"""Fixtures for tests of policies; any can be overridden in a conftest.py.

    @pytest.mark.kernel
    def test_dns_is_dropped(policy, send, expect):
        policy("policy.lua")
        expect(send(dns_question("example.com"))).dropped()

They do their work where kernel tests run. Imports are late, because the host reads this
file too, for each run of pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import BridgeError, PolicyError
from bridge.testing import artefacts
from bridge.testing.expectation import ExchangeExpectation, Expectation
from bridge.testing.keeper import ModuleKeeper

if TYPE_CHECKING:
    from bridge.exchange import Exchange, Ping
    from bridge.lunatik import Lunatik, Runtime
    from bridge.policyfile import PolicyFile
    from bridge.testing.witness import Witness
    from bridge.traffic import Outcome, Packet, Traffic
    from netns import Topology


_KEEPER = ModuleKeeper()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test that loads the module in its own way find none."""
    if "_lunabridge_module" not in getattr(item, "fixturenames", ()):
        _KEEPER.unload()


@pytest.fixture
def _lunabridge_module() -> Iterator[Lunatik]:
    with _KEEPER.connect() as lunatik:
        yield lunatik
    _KEEPER.look()


@pytest.fixture
def lunatik(_lunabridge_module: Lunatik) -> Lunatik:
    """The kernel module, as if just loaded, with its defaults; see bridge.lunatik."""
    return _lunabridge_module


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> Iterator[Topology]:
    """Hosts in a row: client, router and server, or those that the marker names."""
    from netns import Topology, chain  # noqa: PLC0415

    marker = request.node.get_closest_marker("topology") or pytest.mark.topology.mark
    try:
        plan = chain(*(marker.args or ("client", "router", "server")))
    except ValueError as error:
        message = f"@pytest.mark.topology: {error}"
        raise pytest.fail.Exception(message, pytrace=False) from None
    with Topology(plan, **marker.kwargs) as built:
        yield built


class Policies:
    """Loads policies, each at the hooks that its script registers."""

    def __init__(self, lunatik: Lunatik, topology: Topology, places: list[Path]) -> None:
        self._lunatik = lunatik
        self._topology = topology
        self._places = places
        self._stack = ExitStack()

    def __call__(
        self,
        script: str,
        *,
        source: str | None = None,
        host: str | None = None,
        percpu: bool = False,
        breaker: int = 0,
    ) -> Runtime:
        """Load a script in a host and return its runtime, which ends with the test.

        ``script`` is a path relative to the test's file or to pytest's rootdir, or the
        name of one of the policies that come with the bridge; with ``source`` it only
        names that text. ``host`` is the first that forwards, or the last where none
        does. ``percpu`` and ``breaker`` are those of Lunatik.runtime(). Raises LuaError
        where the script fails, PolicyError where it registers no hook, UsageError.
        """
        __tracebackhide__ = True
        try:
            file = self._find(script) if source is None else None
            runtime = self._lunatik.runtime(
                file.name if file else script,
                source=file.source if file else source,
                sleep=False,
                netns=self._topology[host or self._default_host()].netns,
                percpu=percpu,
                breaker=breaker,
            )
            self._stack.enter_context(runtime)
            if not runtime.hooks():
                raise PolicyError(
                    f"{script} registers no hook, so it meets no packet",
                    cure="have it call netfilter.register, or use lunatik.runtime() instead",
                )
        except BridgeError as error:
            # The traceback then shows the test, not what happens in here.
            raise error.with_traceback(None) from None
        return runtime

    def close(self) -> None:
        """Stop all."""
        self._stack.close()

    def _find(self, script: str) -> PolicyFile:
        """Return a script, called by its file's name, as Lua's messages then do too."""
        from bridge import policyfile  # noqa: PLC0415

        for place in self._places:
            if (path := place / script).is_file():
                file = policyfile.load(str(path))
                return policyfile.PolicyFile(path.name[-policyfile.NAME_MAX :], file.source)
        try:
            return policyfile.load(script)
        except BridgeError as error:
            looked = " or ".join(dict.fromkeys(str(place) for place in self._places))
            error.message += f" in {looked}, of the files that git does not ignore"
            raise

    def _default_host(self) -> str:
        hosts = self._topology.plan.hosts
        return hosts[1] if len(hosts) > 2 else hosts[-1]


@pytest.fixture
def policy(
    lunatik: Lunatik, topology: Topology, request: pytest.FixtureRequest
) -> Iterator[Policies]:
    """Load a script at a host: ``policy("policy.lua")``; see Policies."""
    policies = Policies(lunatik, topology, [request.path.parent, request.config.rootpath])
    yield policies
    policies.close()


@pytest.fixture
def traffic(
    topology: Topology, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Traffic]:
    """Sends packets between the hosts, watched on every link; see bridge.traffic.

    A test that fails leaves all packets as a pcapng, with what became of them.
    """
    from bridge.traffic import Traffic  # noqa: PLC0415

    with Traffic(topology) as running:
        yield running
        if artefacts.has_failed(request.node):
            path = tmp_path / "links.pcapng"
            running.save(path)
            artefacts.keep(request.node, "packets", path)


class Sender:
    """Sends packets, and holds conversations, from the first host to the last."""

    def __init__(self, traffic: Traffic, witness: Witness) -> None:
        self._traffic = traffic
        self._witness = witness
        hosts = traffic.topology.plan.hosts
        self._ends = hosts[0], hosts[-1]

    def __call__(
        self,
        packets: Packet | Iterable[Packet],
        *,
        src: str | None = None,
        dst: str | None = None,
        **options: Any,
    ) -> list[Outcome]:
        """Send scapy packets and return what became of each; see Traffic.send()."""
        self._witness.mark()
        first, last = self._ends
        return self._traffic.send(packets, src=src or first, dst=dst or last, **options)

    def tcp(self, **options: Any) -> Exchange:
        """Have data echoed over TCP; see Traffic.tcp_exchange()."""
        self._witness.mark()
        return self._traffic.tcp_exchange(*self._ends, **options)

    def udp(self, **options: Any) -> Exchange:
        """Have a datagram echoed; see Traffic.udp_exchange()."""
        self._witness.mark()
        return self._traffic.udp_exchange(*self._ends, **options)

    def ping(self, **options: Any) -> Ping:
        """Send echo requests; see Traffic.ping()."""
        self._witness.mark()
        return self._traffic.ping(*self._ends, **options)


@pytest.fixture
def _lunabridge_witness(topology: Topology) -> Iterator[Witness]:
    from bridge.testing.witness import Witness  # noqa: PLC0415

    with Witness(topology) as witness:
        yield witness


@pytest.fixture
def send(traffic: Traffic, _lunabridge_witness: Witness) -> Sender:
    """Send packets from the first host to the last: ``send(packets)``; see Sender."""
    return Sender(traffic, _lunabridge_witness)


@pytest.fixture
def expect(_lunabridge_witness: Witness) -> Callable[..., Expectation | ExchangeExpectation]:
    """Claim what became of packets: ``expect(send(packets)).dropped()``."""

    def expect(seen: Any) -> Expectation | ExchangeExpectation:
        from bridge.exchange import Exchange, Ping  # noqa: PLC0415

        if isinstance(seen, Exchange | Ping):
            return ExchangeExpectation(seen, _lunabridge_witness.findings)
        return Expectation(seen, _lunabridge_witness.findings)

    return expect
