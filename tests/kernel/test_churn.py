"""Many lives of runtimes while packets flow, and nothing of them is left."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bridge.lunatik import Lunatik
from bridge.testing import sanitizers
from netns import Topology

pytestmark = pytest.mark.kernel

CYCLES = sanitizers.fewer(1000, by=40)
# What the slab's own bookkeeping moves by: objects parked on per-CPU lists count as
# in use. A leak of one smallest object a cycle would be 8,000 bytes, of one Lua state
# 14,000,000.
SLACK_BYTES = 64 * 1024


def _kmalloc_bytes() -> int:
    """Bytes in use in the caches of kmalloc, see slabinfo(5)."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    rows = re.findall(
        r"^kmalloc-(?!rcl)\S+ +(\d+) +\d+ +(\d+)", Path("/proc/slabinfo").read_text(), re.M
    )
    return sum(int(objects) * int(size) for objects, size in rows)


def _references() -> int:
    return int(Path("/sys/module/lunatik/refcnt").read_text())


def test_many_lives_under_traffic_leave_slab_and_references_as_they_were():
    with Lunatik.load() as lunatik, Topology.router() as topology:
        router, server = topology["router"], topology["server"]

        def live() -> None:
            with lunatik.runtime("dns_block", sleep=False, netns=router.netns) as runtime:
                assert runtime.resume("block", "bad.example") == 1

        flood = topology["client"].popen(
            ["ping", "-f", "-q", server.address()], stdout=subprocess.DEVNULL
        )
        try:
            for _ in range(sanitizers.fewer(20)):  # caches and lists fill up once
                live()
            references, before = _references(), _kmalloc_bytes()
            for _ in range(CYCLES):
                live()
            grown = _kmalloc_bytes() - before
            assert flood.poll() is None, "the traffic ended early"
        finally:
            flood.terminate()
            flood.wait()
        assert _references() == references == 0
        # KASAN keeps freed objects back, which count as in use: there kmemleak judges.
        assert grown < SLACK_BYTES or sanitizers.present()
        assert lunatik.info().runtimes == 0


@pytest.mark.stock_kernel("KASAN keeps freed objects back, which count as in use")
def test_the_measure_of_the_slab_notices_a_leak():
    with Lunatik.load() as lunatik:
        before = _kmalloc_bytes()
        kept = [lunatik.runtime("echo") for _ in range(10)]
        assert _kmalloc_bytes() - before > SLACK_BYTES
        for runtime in kept:
            runtime.stop()
