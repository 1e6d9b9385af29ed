"""Making the module's allocations fail, and watching what becomes of its memory."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PARAMETERS = Path("/sys/module/lunatik/parameters")
MODULES = ("lunatik", "lunatik_sabotage")
DEPTH = 16
# Freeing may have to wait for RCU, or for a worker.
SETTLE_S = 5.0


class Failure:
    """The parameters that make allocations fail."""

    @contextmanager
    def of(self, number: int, length: int) -> Iterator[None]:
        """Have allocation ``number`` from now fail, and ``length`` in all in a row."""
        (PARAMETERS / "fail_length").write_text(str(length))
        (PARAMETERS / "fail_allocation").write_text(str(number))
        try:
            yield
        finally:
            self.reached = (PARAMETERS / "fail_allocation").read_text().strip() == "0"
            (PARAMETERS / "fail_allocation").write_text("0")


class Blocks:
    """What this process had the modules allocate since the last reset, and is not freed."""

    def __init__(self) -> None:
        from bcc import BPF

        release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
        flags = {
            "DEPTH": DEPTH,
            "RANGES": len(MODULES),
            "PROCESS": os.getpid(),
            # Before 6.2 the cache came before the size.
            "BYTES_ARGUMENT": 2 if release >= (6, 2) else 3,
        }
        self._bpf = BPF(
            text=Path(__file__).with_name("live.c").read_bytes(),
            cflags=[f"-D{name}={value}" for name, value in flags.items()],
        )
        self.reset()

    def reset(self) -> None:
        """Forget what is allocated, and look up anew where the modules are."""
        ranges = self._bpf[b"ranges"]
        for index, name in enumerate(MODULES):
            start, end = _text_of(name)
            ranges[ranges.Key(index)] = ranges.Leaf(start, end)
        live = self._bpf[b"live"]
        for block in live.keys():  # noqa: SIM118 - bcc's own
            with suppress(KeyError):  # freed meanwhile
                del live[block]

    def left(self) -> list[str]:
        """Return a line for each block that stays allocated."""
        deadline = time.monotonic() + SETTLE_S
        while any(True for _ in self._bpf[b"live"]):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return [
            f"{block.bytes} bytes allocated by {self._symbol(block.caller)}"
            for block in self._bpf[b"live"].values()
        ]

    def close(self) -> None:
        """Detach."""
        self._bpf.cleanup()

    def _symbol(self, address: int) -> str:
        name: bytes = self._bpf.ksym(address, show_module=True, show_offset=True)
        return name.decode()


def _text_of(module: str) -> tuple[int, int]:
    """Return the first address of a module and the one after its last; 0, 0 if not loaded."""
    found = re.search(rf"^{module} (\d+) .* (0x\S+)", Path("/proc/modules").read_text(), re.M)
    if found is None:
        return 0, 0
    start = int(found[2], 16)
    return start, start + int(found[1])


@pytest.fixture
def failure() -> Failure:
    return Failure()


@pytest.fixture(scope="session")
def compiled_blocks() -> Iterator[Blocks]:
    blocks = Blocks()
    yield blocks
    blocks.close()


@pytest.fixture
def blocks(lunatik: object, compiled_blocks: Blocks) -> Blocks:
    compiled_blocks.reset()
    return compiled_blocks
