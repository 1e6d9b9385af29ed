"""One long-lived Python process per host, for functions that must run inside it.

Scapy reads interfaces and routes when it is imported, so it has to be imported by a
process that is in the namespace already. The worker is started once, imports scapy
while its owner goes on, and then serves any number of calls.

Both halves are here: ``Worker`` in the owner's process, ``serve`` in the worker's.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bridge.errors import TopologyError
from netns.namespace import entered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LENGTH = struct.Struct("!Q")
_START = """
import sys
sys.path[:] = {path!r}
from netns.worker import serve
serve({channel}, {life}, {neighbours!r})
"""
_WARM_MODULES = (
    "scapy.arch",
    "scapy.layers.l2",
    "scapy.layers.inet",
    "scapy.layers.inet6",
    "scapy.layers.dns",
    "scapy.route6",
    "scapy.sendrecv",
)


class Worker:
    """The owner's end: starts the process, sends it calls, ends it."""

    def __init__(self, netns_path: Path, neighbours: dict[str, str]) -> None:
        """Start the worker in the namespace at ``netns_path``; it warms up by itself.

        ``neighbours`` maps addresses to MACs. Scapy does not ask the kernel for those,
        but the network, where nobody answers while neighbours are static.
        """
        ours, theirs = socket.socketpair()
        life_read, life_write = os.pipe()
        try:
            command = _START.format(
                path=sys.path, channel=theirs.fileno(), life=life_read, neighbours=neighbours
            )
            with entered(netns_path):
                self._process = subprocess.Popen(
                    [sys.executable, "-c", command],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), life_read),
                )
        except BaseException:
            ours.close()
            os.close(life_write)
            raise
        finally:
            theirs.close()
            os.close(life_read)
        self._channel = ours
        self._life = life_write

    @property
    def is_alive(self) -> bool:
        """Whether the process can still serve a call."""
        return self._process.poll() is None

    def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout_s: float,
    ) -> Any:
        """Run one call in the worker; its result is returned, its exception raised.

        Raises TopologyError when the worker dies or ``timeout_s`` seconds pass; the
        worker is of no use after either.
        """
        request = _pickled_call(function, args, kwargs)
        try:
            _send(self._channel, request)
            self._channel.settimeout(timeout_s)
            succeeded, value = pickle.loads(_receive(self._channel))  # noqa: S301 - our own child
        except TimeoutError:
            self.close()
            raise TopologyError(
                f"{_name(function)} did not return within {timeout_s:g} s"
            ) from None
        except (EOFError, ConnectionError):
            status = self._process.wait()
            self.close()
            raise TopologyError(
                f"the worker process ended during {_name(function)} (status {status})"
            ) from None
        if not succeeded:
            raise value
        return value

    def close(self) -> None:
        """End the process, whatever it is doing, and wait for it."""
        if self._life < 0:
            return
        self._process.kill()
        self._process.wait()
        self._channel.close()
        os.close(self._life)
        self._life = -1


def serve(channel_fd: int, life_fd: int, neighbours: dict[str, str]) -> None:
    """Serve calls until the owner closes the channel or dies (the worker's main)."""
    # Ctrl-C reaches the whole process group; what happens then is the owner's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The kernel sends SIGIO, which ends us, when the owner's end of the pipe closes:
    # a worker that is busy when its owner is killed must not keep the namespace alive.
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life_fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    _warm_up(neighbours)
    with socket.socket(fileno=channel_fd) as channel:
        while True:
            try:
                request = _receive(channel)
            except (EOFError, ConnectionError):
                return
            _send(channel, _answer(request))


def _warm_up(neighbours: dict[str, str]) -> None:
    """Import scapy's core now that the namespace is entered.

    A worker without scapy still serves functions that do not need it.
    """
    with suppress(ImportError):
        for module in _WARM_MODULES:
            importlib.import_module(module)
        caches = importlib.import_module("scapy.config").conf.netcache
        caches.arp_cache.timeout = caches.in6_neighbor.timeout = None
        for address, mac in neighbours.items():
            cache = caches.in6_neighbor if ":" in address else caches.arp_cache
            cache[address] = mac


def _answer(request: bytes) -> bytes:
    try:
        function, args, kwargs = pickle.loads(request)  # noqa: S301 - from our own owner
        return pickle.dumps((True, function(*args, **kwargs)))
    except BaseException as error:  # noqa: BLE001 - it is raised again in the owner
        error.add_note("in the host's worker process:\n" + traceback.format_exc())
        return _pickled_error(error)


def _pickled_error(error: BaseException) -> bytes:
    """Pickle an exception, or a description of one that does not survive it."""
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)  # noqa: S301 - some exceptions only fail here
    except Exception:  # noqa: BLE001 - any failure has the same remedy
        described = TopologyError(f"{type(error).__name__}: {error}")
        for note in error.__notes__:
            described.add_note(note)
        return pickle.dumps((False, described))
    return answer


def _pickled_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes:
    if getattr(function, "__module__", None) == "__main__":
        raise TopologyError(
            f"{_name(function)} is defined in the main script, where a worker cannot find it",
            cure="move it into a module that can be imported",
        )
    try:
        return pickle.dumps((function, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TopologyError(
            f"{_name(function)} or its arguments cannot be sent to a worker: {error}",
            cure="use a function at the top level of a module, and plain values",
        ) from error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _send(channel: socket.socket, message: bytes) -> None:
    channel.settimeout(None)
    channel.sendall(_LENGTH.pack(len(message)) + message)


def _receive(channel: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_receive_exactly(channel, _LENGTH.size))
    return _receive_exactly(channel, length)


def _receive_exactly(channel: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        part = channel.recv(min(length - len(received), 1 << 20))
        if not part:
            raise EOFError
        received += part
    return bytes(received)
