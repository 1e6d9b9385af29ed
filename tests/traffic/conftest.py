from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING

import pytest

from bridge.traffic import Traffic
from netns import Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netns import Host


@pytest.fixture(scope="module")
def shared_router() -> Iterator[Topology]:
    with Topology.router() as topology:
        yield topology


@pytest.fixture
def traffic(shared_router: Topology) -> Iterator[Traffic]:
    with Traffic(shared_router) as traffic:
        yield traffic


@pytest.fixture
def rules() -> Callable[..., None]:
    """Set nftables rules, which stand in for a policy, at one hook of one host."""
    if shutil.which("nft") is None:
        pytest.skip("needs nft, which stands in for a policy")

    def load(host: Host, hook: str, *lines: str) -> None:
        chain = "\n".join([f"type filter hook {hook} priority 0", *lines])
        table = f"table inet stand_in {{\nchain one {{\n{chain}\n}}\n}}\n"
        host.run(["nft", "-f", "-"], stdin=table, check=True)

    return load


@pytest.fixture
def policy(
    shared_router: Topology, rules: Callable[..., None]
) -> Iterator[Callable[..., None]]:
    """Set rules for what the router forwards; they are gone after the test."""
    router = shared_router["router"]
    yield functools.partial(rules, router, "forward")
    router.run(["nft", "flush", "ruleset"], check=True)
