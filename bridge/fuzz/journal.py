"""What is being tried, told to the kernel's log before it is tried.

A guest that crashes or hangs takes everything along but its console, and that ends
with the command that makes the fatal batch again.
"""

from __future__ import annotations

import os

from bridge.errors import BridgeError
from bridge.testing.gates import KernelLog


class FaultFound(BridgeError):
    """The kernel complained about what a fuzzer gave it."""


class Journal:
    """The kernel's log, written before each batch and read after it. Needs root."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
        self._log = KernelLog()
        self._batch = ""

    def begin(self, batch: str) -> None:
        """Say which batch comes; ``batch`` is the command that makes it again."""
        self._batch = batch
        os.write(self._fd, f"<4>lunabridge: fuzz: {batch}\n".encode())

    def end(self, complaint: str | None = None, *, content: str = "") -> None:
        """Look at what the kernel said meanwhile.

        Raises FaultFound where it complained, or with a ``complaint``; ``content`` is
        what the batch was.
        """
        found = [f"the kernel said: {splat}" for splat in self._log.splats()]
        if complaint:
            found.append(complaint)
        if found:
            raise FaultFound(
                "\n".join([*found, content]).rstrip(), cure=f"the same again: {self._batch}"
            )

    def close(self) -> None:
        """Stop reading the log."""
        self._log.close()
        os.close(self._fd)
