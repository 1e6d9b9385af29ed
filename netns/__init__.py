"""Network namespaces and topologies for traffic through a packet policy."""

from __future__ import annotations

from netns.host import Host
from netns.owner import clean_leftovers
from netns.plan import Hop, Interface, Link, Plan, chain
from netns.topology import Topology

__all__ = [
    "Hop",
    "Host",
    "Interface",
    "Link",
    "Plan",
    "Topology",
    "chain",
    "clean_leftovers",
]
