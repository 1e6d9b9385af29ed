"""All Lua states together take no more memory than the module may."""

from __future__ import annotations

import pytest

from bridge.errors import LuaError
from bridge.lunatik import Lunatik

pytestmark = pytest.mark.kernel


def test_all_states_together_stay_within_the_total():
    with Lunatik.load(total_memory=200_000) as lunatik:
        assert lunatik.info().memory_bytes == 0
        runtimes = []
        with pytest.raises(LuaError, match="not enough memory"):  # noqa: PT012 - the last fails
            while True:
                runtimes.append(lunatik.runtime("echo"))
        assert len(runtimes) > 2
        info = lunatik.info()
        assert info.memory_limit_bytes == 200_000
        used = sum(runtime.info().memory_bytes for runtime in runtimes)
        assert used <= info.memory_bytes <= 200_000
        with pytest.raises(LuaError, match="not enough memory"):
            runtimes[0].resume("x" * 60_000)
        runtimes.pop().stop()
        runtimes.append(lunatik.runtime("echo"))
        for runtime in runtimes:
            runtime.stop()
        assert lunatik.info().memory_bytes == 0
