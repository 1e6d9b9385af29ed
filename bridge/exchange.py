"""Real sockets in the hosts of a topology: TCP, UDP, echo requests, a DNS server.

The kernel's own stacks do the talking here, so what is observed is what applications
would see. ``let_through`` is the barrier of ``Traffic``: it returns when what was sent,
and the answers to it, have gone through.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from bridge.errors import TrafficError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from netns import Host
    from netns.plan import Version

_IPPROTO_ICMPV6 = 58
_ANSWERS = {
    1: socket.inet_pton(socket.AF_INET, "192.0.2.53"),
    28: socket.inet_pton(socket.AF_INET6, "2001:db8::53"),
}


class Ending(StrEnum):
    """How an exchange ended, as the client saw it."""

    COMPLETED = "completed"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    UNANSWERED = "unanswered"


_ENDINGS = {
    errno.ECONNREFUSED: Ending.REFUSED,
    errno.ECONNRESET: Ending.RESET,
    errno.EPIPE: Ending.RESET,
    errno.EHOSTUNREACH: Ending.UNREACHABLE,
    errno.ENETUNREACH: Ending.UNREACHABLE,
    errno.EACCES: Ending.UNREACHABLE,  # administratively prohibited (ICMPv6)
    errno.EPERM: Ending.UNANSWERED,  # dropped in the sender's own LOCAL_OUT
    errno.ETIMEDOUT: Ending.UNANSWERED,
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """What became of a conversation with an echo server.

    ``connected`` is the client's view (always true of UDP, which does not connect);
    ``at_server`` and ``at_client`` are the bytes that got through, each way.
    """

    ending: Ending
    connected: bool
    at_server: bytes
    at_client: bytes
    duration_s: float

    @property
    def completed(self) -> bool:
        """Whether all data came back."""
        return self.ending is Ending.COMPLETED


@dataclass(frozen=True, slots=True)
class Ping:
    """How many echo requests were sent and answered, and the answers' times in seconds."""

    sent: int
    received: int
    times_s: tuple[float, ...]


class _TcpConversation:
    """One client and one echo server, driven by a single loop."""

    def __init__(
        self, client: socket.socket, listener: socket.socket | None, data: bytes
    ) -> None:
        self.client = client
        self.unsent = memoryview(data)
        self.wanted = len(data)
        self.ending: Ending | None = None
        self.connected = False
        self.at_server = bytearray()
        self.at_client = bytearray()
        self._echo = b""
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._selector.register(client, selectors.EVENT_WRITE, self._client_ready)
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
            self._listener = listener

    def run(self, timeout_s: float) -> Ending:
        deadline = time.monotonic() + timeout_s
        try:
            while self.ending is None and (left_s := deadline - time.monotonic()) > 0:
                for key, events in self._selector.select(left_s):
                    key.data(events)
        finally:
            self._selector.close()
            if self._server is not None:
                self._server.close()
        return self.ending or Ending.UNANSWERED

    def _accept(self, _events: int) -> None:
        self._server, _ = self._listener.accept()
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, self._serve)

    def _serve(self, _events: int) -> None:
        assert self._server is not None
        with suppress(BlockingIOError, ConnectionError):
            if self._echo:
                self._echo = self._echo[self._server.send(self._echo) :]
            else:
                self._echo = self._server.recv(1 << 16)
                self.at_server += self._echo
                if not self._echo:
                    self._selector.unregister(self._server)
                    self._server.shutdown(socket.SHUT_WR)
                    return
            wanted = selectors.EVENT_WRITE if self._echo else selectors.EVENT_READ
            self._selector.modify(self._server, wanted, self._serve)

    def _client_ready(self, events: int) -> None:
        try:
            if not self.connected:
                self._finish_connect()
            elif events & selectors.EVENT_READ:
                self._client_receive()
            elif self.unsent:
                self.unsent = self.unsent[self.client.send(self.unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            self.ending = _ending(error)
            return
        if self.ending is None:
            self._client_interests()

    def _finish_connect(self) -> None:
        code = self.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self.connected = True

    def _client_receive(self) -> None:
        part = self.client.recv(1 << 16)
        self.at_client += part
        if not part or len(self.at_client) >= self.wanted:
            whole = len(self.at_client) == self.wanted
            self.ending = Ending.COMPLETED if whole else Ending.RESET

    def _client_interests(self) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        if self.connected and not self.wanted:
            self.ending = Ending.COMPLETED
        self._selector.modify(self.client, wanted, self._client_ready)


def tcp(
    client: Host,
    server: Host,
    address: tuple[str, int],
    data: bytes,
    *,
    listen: bool,
    timeout_s: float,
) -> Exchange:
    """Hold one TCP conversation; see ``Traffic.tcp_exchange``."""
    family = _family(address[0])
    start = time.monotonic()
    with ExitStack() as stack:
        listener = None
        if listen:
            listener = stack.enter_context(server.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(listener, server, address)
            listener.listen()
        ours = stack.enter_context(client.socket(family, socket.SOCK_STREAM))
        ours.setblocking(False)
        code = ours.connect_ex(address)
        if code not in {0, errno.EINPROGRESS}:
            ending = _ending(OSError(code, os.strerror(code)))
            return Exchange(ending, False, b"", b"", time.monotonic() - start)
        conversation = _TcpConversation(ours, listener, data)
        ending = conversation.run(timeout_s)
        return Exchange(
            ending,
            conversation.connected,
            bytes(conversation.at_server),
            bytes(conversation.at_client),
            time.monotonic() - start,
        )


def udp(
    client: Host,
    server: Host,
    address: tuple[str, int],
    data: bytes,
    let_through: Callable[[], None],
    *,
    listen: bool,
) -> Exchange:
    """Send one datagram and have it echoed; see ``Traffic.udp_exchange``."""
    family = _family(address[0])
    start = time.monotonic()
    at_server = at_client = b""
    ending = Ending.UNANSWERED
    with ExitStack() as stack:
        ours = stack.enter_context(client.socket(family, socket.SOCK_DGRAM))
        ours.setblocking(False)
        try:
            theirs = None
            if listen:
                theirs = stack.enter_context(server.socket(family, socket.SOCK_DGRAM))
                theirs.setblocking(False)
                _bind(theirs, server, address)
            ours.connect(address)
            ours.send(data)
            let_through()
            if theirs is not None and _is_readable(theirs):
                at_server, sender = theirs.recvfrom(1 << 16)
                with suppress(OSError):  # the server's own policy may forbid the answer
                    theirs.sendto(at_server, sender)
                let_through()
            at_client = ours.recv(1 << 16)
            ending = Ending.COMPLETED
        except BlockingIOError:
            pass  # nothing came, and nothing is under way
        except OSError as error:
            ending = _ending(error)
    return Exchange(ending, True, at_server, at_client, time.monotonic() - start)


def ping(
    source: Host,
    address: str,
    let_through: Callable[[], None],
    *,
    version: Version,
    count: int,
    size_bytes: int,
) -> Ping:
    """Send echo requests one by one; see ``Traffic.ping``."""
    family, protocol, request, reply = (
        (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0)
        if version == 4
        else (socket.AF_INET6, _IPPROTO_ICMPV6, 128, 129)
    )
    identifier = os.getpid() & 0xFFFF
    times_s = []
    with source.socket(family, socket.SOCK_RAW, protocol) as echo:
        echo.setblocking(False)
        for sequence in range(1, count + 1):
            start = time.monotonic()
            body = bytes(size_bytes)
            message = struct.pack("!BBHHH", request, 0, 0, identifier, sequence) + body
            message = message[:2] + _checksum(message).to_bytes(2, "big") + message[4:]
            with suppress(PermissionError):  # dropped in the sender's own LOCAL_OUT
                echo.sendto(message, (address, 0))
            let_through()
            wanted = struct.pack("!HH", identifier, sequence)
            if _received_reply(echo, version, reply, wanted):
                times_s.append(time.monotonic() - start)
    return Ping(count, len(times_s), tuple(times_s))


def _received_reply(echo: socket.socket, version: int, reply: int, wanted: bytes) -> bool:
    found = False
    while _is_readable(echo):
        message = echo.recv(1 << 16)
        if version == 4:  # raw IPv4 sockets deliver the header too (raw(7))
            message = message[(message[0] & 0xF) * 4 :]
        found = found or (message[0] == reply and message[4:8] == wanted)
    return found


class DnsServer:
    """Answers A and AAAA for any name with a documentation address; other types with none.

    It runs in a thread with sockets that belong to the host. ``questions`` counts what
    reached it.
    """

    def __init__(self, host: Host, port: int = 53) -> None:
        self.questions = 0
        self._host = host
        self._port = port
        self._busy = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._wake = (-1, -1)
        self._thread = threading.Thread(target=self._run, name="dns-server", daemon=True)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
                server = stack.enter_context(self._host.socket(family, socket.SOCK_DGRAM))
                server.setblocking(False)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                _bind(server, self._host, (anywhere, self._port))
                self._sockets.append(server)
            self._wake = os.pipe()
            stack.pop_all()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._wake[1])
        self._thread.join()
        os.close(self._wake[0])
        for server in self._sockets:
            server.close()

    def wait_idle(self, timeout_s: float) -> None:
        """Return when all questions that have arrived are answered.

        Raises TrafficError after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._busy:
                if not select.select(self._sockets, [], [], 0)[0]:
                    return
            if time.monotonic() > deadline:
                raise TrafficError(f"the DNS server of {self._host.name} does not keep up")
            time.sleep(0.001)  # lets the server's thread have the lock

    def _run(self) -> None:
        while True:
            numbers = [*(server.fileno() for server in self._sockets), self._wake[0]]
            ready, _, _ = select.select(numbers, [], [])
            if self._wake[0] in ready:
                return
            with self._busy:
                for server in self._sockets:
                    if server.fileno() in ready:
                        self._serve(server)

    def _serve(self, server: socket.socket) -> None:
        with suppress(OSError):  # a policy may forbid the answer; that is the test's business
            question, sender = server.recvfrom(1 << 16)
            self.questions += 1
            answer = dns_answer(question)
            if answer is not None:
                server.sendto(answer, sender)


def dns_answer(question: bytes) -> bytes | None:
    """Answer a DNS message with one question (RFC 1035); None if it is not one."""
    if len(question) < 17 or question[2] & 0x80 or question[4:6] != b"\x00\x01":
        return None
    end = 12
    while end < len(question) and question[end]:
        end += question[end] + 1
    asked = question[12 : end + 5]
    if len(asked) != end - 7:
        return None
    data = _ANSWERS.get(int.from_bytes(asked[-4:-2], "big"))
    flags = 0x8400 | (question[2] & 0x01) << 8  # a response, authoritative; RD as asked
    header = question[:2] + struct.pack("!HHHHH", flags, 1, int(data is not None), 0, 0)
    if data is None:
        return header + asked
    # The name is a pointer to the question; the answer may be kept for a minute.
    record = b"\xc0\x0c" + asked[-4:] + struct.pack("!IH", 60, len(data)) + data
    return header + asked + record


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _bind(server: socket.socket, host: Host, address: tuple[str, int]) -> None:
    try:
        server.bind(address)
    except OSError as error:
        raise TrafficError(
            f"cannot serve port {address[1]} of {host.name}: {error.strerror}",
            cure="choose another port, or end what uses it",
        ) from error


def _is_readable(one: socket.socket) -> bool:
    return bool(select.select([one], [], [], 0)[0])


def _ending(error: OSError) -> Ending:
    try:
        return _ENDINGS[error.errno or 0]
    except KeyError:
        raise TrafficError(f"the exchange failed: {error.strerror}") from error


def _checksum(message: bytes) -> int:
    """The Internet checksum (RFC 1071); the kernel computes ICMPv6's itself."""
    if len(message) % 2:
        message += b"\0"
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
