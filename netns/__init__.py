"""Network namespaces and topologies for traffic through a packet policy."""
