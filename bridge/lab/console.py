"""The guest's console: an open file that is shown only when something failed."""

from __future__ import annotations

import fcntl
import os
import re

_TAIL_BYTES = 16384
_LIMIT_BYTES = 1 << 24
_LAST_WORDS = 150
_TROUBLE = re.compile(r"BUG: |Oops: |Kernel panic|general protection fault|\[ cut here \]")
_COMPLAINT = re.compile(r"^qemu-system-\w+: .*", re.MULTILINE)
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")


class Console:
    """What the guest printed; ``fd`` is a file QEMU appends to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def in_memory(cls) -> Console:
        """Return a console without a file, gone with the last process that has it."""
        fd = os.memfd_create("lab-console", os.MFD_CLOEXEC)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        return cls(fd)

    @property
    def size_bytes(self) -> int:
        """Return how much was printed so far."""
        return os.fstat(self.fd).st_size

    def tail(self, lines: int = 40) -> str:
        """Return the last lines."""
        start = max(0, self.size_bytes - _TAIL_BYTES)
        text = os.pread(self.fd, _TAIL_BYTES, start).decode(errors="replace")
        return "\n".join(text.replace("\r", "").rstrip().splitlines()[-lines:])

    def last_words(self) -> str:
        """Return what a dying guest said: from the first sign of trouble on."""
        lines = self.tail(lines=400).splitlines()
        trouble = (n for n, line in enumerate(lines) if _TROUBLE.search(line))
        start = next(trouble, max(0, len(lines) - 40))
        return "\n".join(lines[max(0, start - 5) :][:_LAST_WORDS])

    def cause_of_death(self) -> str:
        """Return what ended the guest, in a few words."""
        text = self.tail(lines=400)
        if panics := _PANIC.findall(text):
            return f"kernel panic: {panics[-1].strip()}"
        if complaints := _COMPLAINT.findall(text):
            return str(complaints[-1])
        return "it powered off or was killed"

    def trim(self) -> None:
        """Forget all but the end of a console that has grown large."""
        if self.size_bytes > _LIMIT_BYTES:
            end = os.pread(self.fd, _TAIL_BYTES, self.size_bytes - _TAIL_BYTES)
            os.ftruncate(self.fd, 0)  # QEMU appends, so it goes on at the new end
            os.write(self.fd, end)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
