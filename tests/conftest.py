"""What kernel tests share: a topology, policies from text."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bridge.lunatik import Lunatik, Runtime
    from bridge.traffic import Traffic
    from netns import Topology

pytest_plugins = ["pytester"]

Policy = Callable[..., "Runtime"]

# Directories whose tests are of programs in user space.
TOOLS = {"cli", "cases"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests of tools to the stock kernels: they start many slow programs."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in TOOLS:
            item.add_marker(pytest.mark.stock_kernel("the tool it tests is in user space"))


@pytest.fixture(scope="session")
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether counts are to be full, see --long."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note in the test's report how much was done; pytest -rP shows it."""
    return lambda text: request.node.add_report_section("call", "tally", text)


@pytest.fixture(scope="module")
def router() -> Iterator[Topology]:
    """Client - router - server, shared by the tests of a file."""
    from netns import Topology

    with Topology.router() as topology:
        yield topology


@pytest.fixture(scope="module")
def traffic(router: Topology) -> Iterator[Traffic]:
    """Traffic through the router, watched on every link."""
    from bridge.traffic import Traffic

    with Traffic(router) as running:
        yield running


@pytest.fixture
def script(lunatik: Lunatik) -> Iterator[Callable[..., Runtime]]:
    """Create a runtime from source text; all are stopped at the test's end."""
    with ExitStack() as stack:

        def create(source: str, *, name: str = "script", **options: object) -> Runtime:
            runtime = lunatik.runtime(name, source=source, **options)  # type: ignore[arg-type]
            return stack.enter_context(runtime)

        yield create


@pytest.fixture
def client_hello() -> Callable[..., bytes]:
    """Have OpenSSL make the bytes that a TLS client sends first."""

    def make(name: str | None, alpn: list[str] | None = None, newest: str = "TLSv1_3") -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.maximum_version = ssl.TLSVersion[newest]
        if alpn:
            context.set_alpn_protocols(alpn)
        sent = ssl.MemoryBIO()
        connection = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
        with pytest.raises(ssl.SSLWantReadError):
            connection.do_handshake()
        return sent.read()

    return make


HOOK = """
local netfilter = require "netfilter"
local ACCEPT, DROP = netfilter.action.ACCEPT, netfilter.action.DROP
netfilter.register{{
  pf = netfilter.family.{family}, hooknum = netfilter.inet_hooks.FORWARD,
  priority = 0, {extra} hook = function(skb)
    {body}
  end,
}}
"""


@pytest.fixture
def policy(script: Callable[..., Runtime], router: Topology) -> Policy:
    """Put the body of a callback at FORWARD of the router."""

    def create(
        body: str,
        *,
        family: str = "INET",
        extra: str = "",
        before: str = "",
        after: str = "",
        name: str = "policy",
    ) -> Runtime:
        source = before + HOOK.format(family=family, extra=extra, body=body) + after
        return script(source, name=name, sleep=False, netns=router["router"].netns)

    return create
