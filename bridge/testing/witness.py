"""What the kernel says of the policies in force: their hooks' counters, errors and log.

It is asked before packets are sent and when a test's expectation is not met, and says
what happened in between; which policies those are, and who loaded them, is no matter.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from bridge.testing.expectation import Findings

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from bridge.hookinfo import HookInfo
    from bridge.lunatik import RuntimeInfo
    from netns import Topology

_INET = ("PRE_ROUTING", "LOCAL_IN", "FORWARD", "LOCAL_OUT", "POST_ROUTING")
_INET_FAMILIES = {1, 2, 7, 10}  # NFPROTO_INET, _IPV4, _BRIDGE, _IPV6 share the names
_LOG_LINE = re.compile(r"lunatik: (runtime \d+ \(.*)")
_LOG_LINES = 20


class Witness:
    """Watches every runtime of the kernel; close it, or use it as a context manager."""

    def __init__(self, topology: Topology) -> None:
        self._hosts = {host.inode: host.name for host in topology}
        self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._log, 0, os.SEEK_END)
        self._before: dict[tuple[int, int], HookInfo] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._log)

    def mark(self) -> None:
        """Let what comes from now on be the news."""
        _, hooks = _ask()
        self._before = {(hook.runtime_id, hook.number): hook for hook in hooks}

    def findings(self) -> Findings:
        """Return what happened since the mark."""
        runtimes, hooks = _ask()
        facts = [self._fact(runtimes[hook.runtime_id], hook) for hook in hooks]
        facts += [f"  log: {line}" for line in self._logged()]
        return Findings(self._cause(runtimes, hooks), facts)

    def _cause(self, runtimes: dict[int, RuntimeInfo], hooks: list[HookInfo]) -> str:
        if not hooks:
            return "no policy is in force"
        failed = [hook for hook in hooks if self._since(hook, "errors")]
        if failed:
            hook = failed[0]
            error = (runtimes[hook.runtime_id].last_error or "").partition("\n")[0]
            return f"{error} (onerror: {hook.on_error})"
        if not any(self._since(hook, "packets") for hook in hooks):
            return "no hook of a policy met these packets"
        return ""

    def _fact(self, runtime: RuntimeInfo, hook: HookInfo) -> str:
        """Return a hook with what it has counted since the mark."""
        counted = ", ".join(
            f"{self._since(hook, name)} {name}"
            for name in ("accepted", "dropped", "queued", "errors")
            if self._since(hook, name)
        )
        host = self._hosts.get(runtime.netns, "another host")
        packets = self._since(hook, "packets")
        return (
            f"  {hook.runtime_name} at {_hook_name(hook)} of {host}: {packets} packet"
            f"{'' if packets == 1 else 's'}"
            f"{f' ({counted})' if counted else ''}"
        )

    def _since(self, hook: HookInfo, name: str) -> int:
        before = self._before.get((hook.runtime_id, hook.number))
        count: int = getattr(hook, name) - (getattr(before, name) if before else 0)
        return count

    def _logged(self) -> list[str]:
        lines = []
        while (record := self._record()) is not None:
            if found := _LOG_LINE.match(record.partition(";")[2].partition("\n")[0]):
                lines.append(found[1])
        return lines[-_LOG_LINES:]

    def _record(self) -> str | None:
        """Return the log's next record (dev-kmsg in ABI/testing), None at its end."""
        try:
            return os.read(self._log, 8192).decode(errors="replace")
        except BlockingIOError:
            return None
        except BrokenPipeError:
            return ""  # some were overwritten before they were read


def _ask() -> tuple[dict[int, RuntimeInfo], list[HookInfo]]:
    """Return every runtime by its number, and the hooks of those; none without the module."""
    from bridge.lunatik import LOADED, Lunatik  # noqa: PLC0415 - slow to import

    if not LOADED.exists():
        return {}, []
    with Lunatik.connect() as lunatik:
        hooks = lunatik.hooks()
        runtimes = {runtime.id: runtime for runtime in lunatik.runtimes()}
    return runtimes, [hook for hook in hooks if hook.runtime_id in runtimes]


def _hook_name(hook: HookInfo) -> str:
    if hook.pf in _INET_FAMILIES and hook.hooknum < len(_INET):
        return _INET[hook.hooknum]
    return f"hook {hook.hooknum} of family {hook.pf}"
