"""Every error the bridge raises, in one tree.

    BridgeError                     exit status 1
    ├── UsageError                  2    the caller asked for something impossible
    ├── EnvironmentLacking          3    this machine lacks something; the cure is named
    ├── PolicyError                 1    the policy, not the tools, is at fault
    │   └── LuaError                     a Lua error, with its traceback
    ├── ModuleError                 1    the kernel module refused or failed
    ├── TopologyError               1    a namespace or link could not be made
    ├── TrafficError                1    traffic could not be sent or observed
    ├── TraceInconclusive           1    the trace proves nothing (events were lost)
    └── LabError                    3    the lab, never the policy, is at fault
        ├── LabTimeout              124  a deadline passed
        └── GuestCrashed            255  the guest's kernel died; has its console

The status is what the command line exits with.
"""

from __future__ import annotations


class BridgeError(Exception):
    """Something the bridge reports to its user; ``cure`` says what to do about it."""

    exit_status = 1

    def __init__(self, message: str, *, cure: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}\n  {self.cure}" if self.cure else self.message


class UsageError(BridgeError):
    """The caller asked for something that cannot be done as asked."""

    exit_status = 2


class EnvironmentLacking(BridgeError):
    """The machine lacks a program, a privilege or a kernel feature."""

    exit_status = 3


class PolicyError(BridgeError):
    """The policy under test is at fault."""


class LuaError(PolicyError):
    """A Lua error raised inside the kernel.

    ``message`` is Lua's own message; ``traceback`` is Lua's stack traceback, or
    None where the module had none to give.
    """

    def __init__(self, message: str, *, traceback: str | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.message}\n{self.traceback}" if self.traceback else self.message


class ModuleError(BridgeError):
    """The kernel module could not be loaded, refused a request or failed."""

    def __init__(self, message: str, *, errno: int = 0, cure: str | None = None) -> None:
        super().__init__(message, cure=cure)
        self.errno = errno


class TopologyError(BridgeError):
    """A network namespace, link, address or route could not be set up or removed."""


class TrafficError(BridgeError):
    """Traffic could not be injected or its arrival could not be observed."""


class TraceInconclusive(BridgeError):
    """The trace lost events or never started, so it proves nothing either way."""


class LabError(BridgeError):
    """The lab failed; nothing is known about the policy under test."""

    exit_status = 3


class LabTimeout(LabError):
    """A stage of the lab, or the guest's command, passed its deadline."""

    exit_status = 124


class GuestCrashed(LabError):
    """The guest's kernel or its virtual machine died.

    ``console`` holds the last lines of the guest's console.
    """

    exit_status = 255

    def __init__(self, message: str, *, console: str = "", cure: str | None = None) -> None:
        super().__init__(message, cure=cure)
        self.console = console
