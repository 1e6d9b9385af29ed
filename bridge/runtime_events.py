"""What the kernel tells of runtimes as it happens.

with lunatik.events() as events:
    ...
    for event in events.until_quiet(1.0):
        print(event)
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self

from bridge.errors import ModuleError
from bridge.lifecycle import OUTCOMES, STOP_REASONS
from bridge.netlink import LunatikMessage

# include/uapi/linux/netlink.h and asm-generic/socket.h
_NETLINK_GENERIC, _SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 16, 270, 1, 33
_MESSAGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """Something that happened to a runtime, at ``time_ns`` of CLOCK_MONOTONIC."""

    runtime_id: int
    runtime_name: str
    time_ns: int

    def __str__(self) -> str:
        """Return a line that tells of it."""
        common = {field.name for field in fields(RuntimeEvent)}
        details = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if field.name not in common
        ]
        kind = type(self).__name__
        about = f"{self.time_ns / 1e9:.6f} runtime {self.runtime_id} ({self.runtime_name})"
        return " ".join([about, kind, *details])


@dataclass(frozen=True, slots=True)
class Created(RuntimeEvent):
    """It has its number, and its body is about to run; ``netns`` is an inode number."""

    sleep: bool
    percpu: bool
    netns: int


@dataclass(frozen=True, slots=True)
class Armed(RuntimeEvent):
    """Its body has run, and its hooks come into force."""

    hooks: int


@dataclass(frozen=True, slots=True)
class Resumed(RuntimeEvent):
    """Its body goes on; with a Lua state per CPU, one of them."""


@dataclass(frozen=True, slots=True)
class Yielded(RuntimeEvent):
    """The resumed body gave control back: "returned", "yielded" or "error"."""

    outcome: str


@dataclass(frozen=True, slots=True)
class Replaced(RuntimeEvent):
    """Another script, the one that is named, has taken over."""

    generation: int
    hooks: int


@dataclass(frozen=True, slots=True)
class Failed(RuntimeEvent):
    """A callback at ``hook`` failed, or, where that is None, the body.

    Of very many in a short time only the first are told; ``suppressed`` is how many
    were not told since the last that was.
    """

    hook: int | None
    message: str
    suppressed: int


@dataclass(frozen=True, slots=True)
class BudgetExceeded(Failed):
    """A failure for having run too long."""


@dataclass(frozen=True, slots=True)
class Broken(RuntimeEvent):
    """Callbacks have failed as often in a row as its breaker allows, the last at ``hook``.

    Its hooks are out of force, and it will be stopped.
    """

    hook: int
    failures: int


@dataclass(frozen=True, slots=True)
class Stopped(RuntimeEvent):
    """It is closed; ``reason`` is one of bridge.lifecycle.STOP_REASONS."""

    reason: str
    suppressed: int


def _flag(message: Any, name: str) -> bool:
    return bool(_attr(message, name))


def _attr(message: Any, name: str) -> Any:
    return message.get_attr(f"LUNATIK_A_{name}")


def _failure(message: Any) -> tuple[Any, ...]:
    text = _attr(message, "MESSAGE")  # bytes where they are not UTF-8
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return _attr(message, "HOOK") or None, text, _attr(message, "SUPPRESSED")


# In the order of enum lunatik_event: the class, and what it has beside the common fields.
_KINDS: tuple[tuple[type[RuntimeEvent], Callable[[Any], tuple[Any, ...]]], ...] = (
    (Created, lambda m: (_flag(m, "SLEEP"), _flag(m, "PERCPU"), _attr(m, "NETNS_INO"))),
    (Armed, lambda m: (_attr(m, "HOOKS"),)),
    (Resumed, lambda _: ()),
    (Yielded, lambda m: (OUTCOMES[_attr(m, "OUTCOME")],)),
    (Replaced, lambda m: (_attr(m, "GENERATION"), _attr(m, "HOOKS"))),
    (Failed, _failure),
    (BudgetExceeded, _failure),
    (Broken, lambda m: (_attr(m, "HOOK"), _attr(m, "BREAKER"))),
    (Stopped, lambda m: (STOP_REASONS[_attr(m, "REASON")], _attr(m, "SUPPRESSED"))),
)


def _of(message: Any) -> RuntimeEvent:
    """Return the event that a message tells of."""
    kind: Callable[..., RuntimeEvent]
    kind, more = _KINDS[_attr(message, "EVENT")]
    return kind(
        _attr(message, "ID"), _attr(message, "NAME"), _attr(message, "WHEN"), *more(message)
    )


class Events:
    """Events of all runtimes, from when this was made; close it, or use it with with."""

    def __init__(self, group: int, *, buffer_bytes: int) -> None:
        """Join the multicast group; ``buffer_bytes`` are kept for a reader that is slow.

        Raises ModuleError (EPERM) without CAP_SYS_ADMIN.
        """
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
        )
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            raise ModuleError(
                f"cannot listen to events: {error.strerror}",
                errno=error.errno or 0,
                cure="it takes CAP_SYS_ADMIN: run it as root, or in the lab",
            ) from error

    def next(self, timeout_s: float) -> RuntimeEvent | None:
        """Return the next event, or None when ``timeout_s`` pass without one.

        Raises ModuleError (ENOBUFS) once when events were lost, because this reader is
        too slow or the kernel has no memory for them; later ones can be read then.
        """
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return None
        try:
            data = self._socket.recv(_MESSAGE_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            raise ModuleError(
                "events were lost: they are read too slowly",
                errno=error.errno,
                cure="read them faster, or choose larger buffer_bytes",
            ) from error
        message = LunatikMessage(data)
        message.decode()
        return _of(message)

    def until_quiet(self, quiet_s: float) -> Iterator[RuntimeEvent]:
        """Yield events until ``quiet_s`` pass without one; raises as next() does."""
        while event := self.next(quiet_s):
            yield event

    def until(
        self, kind: type[RuntimeEvent], *, runtime_id: int | None = None, timeout_s: float
    ) -> list[RuntimeEvent]:
        """Return the events up to and with the first of ``kind``, perhaps of one runtime.

        Raises TimeoutError when there is none in ``timeout_s``, and as next() does.
        """
        end, seen = time.monotonic() + timeout_s, []
        while event := self.next(max(0.0, end - time.monotonic())):
            seen.append(event)
            if isinstance(event, kind) and runtime_id in (None, event.runtime_id):
                return seen
        raise TimeoutError(f"no {kind.__name__} in {timeout_s:g} s, but {seen}")

    def close(self) -> None:
        """Leave the group."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
