"""The kernel's own allocator fails, while it serves one request to the module.

Unlike the module's parameter this reaches what the kernel allocates on the module's
behalf: messages, hooks, references. Allocation 1, 2, 3, ... of a request fails alone,
until the request succeeds without it; then every allocation fails after the first so
many bytes. Without --long only every STRIDE-th is tried.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import BridgeError, LuaError, ModuleError
from bridge.lunatik import Lunatik
from bridge.netlink import Command, Connection, LunatikMessage, NetlinkError

pytestmark = pytest.mark.kernel(sanitizer=True)

FAULTS = Path("/sys/kernel/debug/failslab")
STRIDE = 71
BYTES_STRIDE = 8192
# More than any request allocates: that nothing is reached any more must come first.
MANY = 20_000
ANSWER_S = 30.0
OUT_OF_MEMORY = (
    r"not enough memory|errno 12|Cannot allocate memory|error in error handling|No buffer space"
)
# The kernel counts down from here at each failure.
OFTEN = 1 << 30
NETLINK_EXT_ACK = 11  # include/uapi/linux/netlink.h
# In this order: without the filter everybody's allocations would fail.
SETTINGS = {
    "task-filter": "Y", "verbose": 0, "ignore-gfp-wait": "N", "cache-filter": "N",
    "interval": 1, "probability": 100,
}  # fmt: skip


class Faults:
    """Has allocations of this task fail during a system call."""

    def __init__(self) -> None:
        for name, value in SETTINGS.items():
            (FAULTS / name).write_text(str(value))
        self.number = 0
        self.after_bytes: int | None = None
        self.reached = False

    def close(self) -> None:
        """Let every allocation succeed again."""
        (FAULTS / "probability").write_text("0")

    @contextmanager
    def during(self) -> Iterator[None]:
        """Have fail what was asked for: allocation ``number``, or all after so many bytes."""
        if self.after_bytes is not None:
            with self._all():
                yield
        elif self.number:
            with self._one():
                yield
        else:
            yield

    @contextmanager
    def _one(self) -> Iterator[None]:
        with _opened("/proc/thread-self/fail-nth") as nth:
            os.write(nth, b"%d" % self.number)
            try:
                yield
            finally:
                self.reached = os.read(nth, 20).strip() == b"0"
                os.write(nth, b"0")

    @contextmanager
    def _all(self) -> Iterator[None]:
        (FAULTS / "space").write_text(str(self.after_bytes))
        (FAULTS / "times").write_text(str(OFTEN))
        with _opened("/proc/thread-self/make-it-fail") as switch:
            os.write(switch, b"1")
            try:
                yield
            finally:
                os.write(switch, b"0")
                self.reached = int((FAULTS / "times").read_text()) < OFTEN


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Open a file that cannot be sought in, which Python's own files would do."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class FailingConnection:
    """The client's connection, with a socket of its own that sends while memory is short.

    The library that the other one is made of allocates for itself, which must not fail.
    """

    def __init__(self, connection: Connection, faults: Faults) -> None:
        self._family: int = connection._socket.prid
        self._faults = faults
        self._open()

    def _open(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
        self._socket.setsockopt(270, NETLINK_EXT_ACK, 1)
        self._socket.settimeout(ANSWER_S)

    def request(self, command: Command, attrs: list[Any], *, dump: bool = False) -> list[Any]:
        """Send a request and return the replies; raises NetlinkError."""
        data = self._encoded(command, attrs, dump=dump)
        if dump:  # one whose first part found no memory goes on, and keeps out the next
            self._socket.close()
            self._open()
        with self._faults.during():
            self._socket.send(data)
        replies: list[Any] = []
        while self._take(self._socket.recv(1 << 16), replies):
            pass
        return replies

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _encoded(self, command: Command, attrs: list[Any], *, dump: bool) -> bytes:
        message = LunatikMessage()
        message["cmd"], message["version"], message["attrs"] = int(command), 1, attrs
        header = message["header"]
        header["type"], header["sequence_number"] = self._family, 1
        header["flags"] = 0x305 if dump else 0x5  # REQUEST, ACK, and for a dump ROOT and MATCH
        message.encode()
        return bytes(message.data)

    def _take(self, data: bytes, replies: list[Any]) -> bool:
        """Take what came; return whether more is to come. Raises NetlinkError."""
        while data:
            size, kind = struct.unpack_from("<IH", data)
            if kind in (2, 3):  # NLMSG_ERROR, which success has as well; NLMSG_DONE
                error = -struct.unpack_from("<i", data, 16)[0]
                if error:
                    raise NetlinkError(error, _text(data[:size]) or os.strerror(error))
                return False
            reply = LunatikMessage(data[:size])
            reply.decode()
            replies.append(reply)
            data = data[(size + 3) & ~3 :]
        return True


def _text(message: bytes) -> str:
    """Return the message of an extended ack (NLMSGERR_ATTR_MSG), if it has one."""
    flags = struct.unpack_from("<H", message, 6)[0]
    # The request follows the error, unless it is capped to its header.
    request = 16 if flags & 0x100 else struct.unpack_from("<I", message, 20)[0]
    rest = message[20 + ((request + 3) & ~3) :]
    while len(rest) >= 4:
        size, kind = struct.unpack_from("<HH", rest)
        if kind & 0x3FFF == 1:
            return rest[4:size].rstrip(b"\0").decode(errors="replace")
        rest = rest[(size + 3) & ~3 :]
    return ""


@dataclass(frozen=True)
class Request:
    """What is asked while allocations fail, of what was prepared before."""

    ask: Callable[[Lunatik, Any], object]
    prepare: Callable[[Lunatik], Any] = lambda _: None


def _echo(*, sleep: bool) -> Callable[[Lunatik], Any]:
    return lambda lunatik: lunatik.runtime("echo", sleep=sleep)


def _resume(_: Lunatik, runtime: Any) -> None:
    sent = ("x" * 100, 1, True, None, b"\0" * 3000)
    assert runtime.resume(*sent) == (b"x" * 100, 1, True, None, b"\0" * 3000)


def _fail(_: Lunatik, runtime: Any) -> None:
    with pytest.raises(LuaError, match=f"as asked|{OUT_OF_MEMORY}"):
        runtime.resume("fail")


REQUESTS = {
    "create": Request(lambda lunatik, _: lunatik.runtime("echo")),
    "create, atomic": Request(lambda lunatik, _: lunatik.runtime("echo", sleep=False)),
    "register": Request(lambda lunatik, _: lunatik.runtime("accept", sleep=False)),
    "load, with libraries": Request(
        lambda lunatik, _: lunatik.runtime("dns_block", sleep=False)
    ),
    "load, a script that is wrong": Request(
        lambda lunatik, _: lunatik.runtime("wrong", source="local t = {1, 2\nreturn")
    ),
    "resume": Request(_resume, _echo(sleep=True)),
    "resume, atomic": Request(_resume, _echo(sleep=False)),
    "resume, an error": Request(_fail, _echo(sleep=True)),
    "create, for each CPU": Request(
        lambda lunatik, _: lunatik.runtime("accept", sleep=False, percpu=True)
    ),
    "replace": Request(
        lambda _, runtime: runtime.replace("accept"),
        lambda lunatik: lunatik.runtime("dns_block", sleep=False),
    ),
    "stop": Request(lambda _, runtime: runtime.stop(), _echo(sleep=False)),
    "stop, with a hook": Request(
        lambda _, runtime: runtime.stop(),
        lambda lunatik: lunatik.runtime("dns_block", sleep=False),
    ),
    "info": Request(lambda lunatik, _: lunatik.info()),
    "list": Request(lambda lunatik, _: lunatik.runtimes(), _echo(sleep=True)),
}


@pytest.fixture
def faults() -> Iterator[Faults]:
    faults = Faults()
    yield faults
    faults.close()


@pytest.fixture
def failing(lunatik: Lunatik, faults: Faults) -> Iterator[Lunatik]:
    """A second client, whose requests fail."""
    client = Lunatik.connect()
    connection = FailingConnection(client._connection, faults)
    client._connection.close()
    client._connection = connection  # type: ignore[assignment]
    yield client
    connection.close()


def _try(failing: Lunatik, lunatik: Lunatik, faults: Faults, name: str) -> str | None:
    """Make a request; return its error, None where it succeeded, and clean up."""
    request = REQUESTS[name]
    prepared = request.prepare(lunatik)
    if prepared is not None:
        prepared._lunatik = failing
    try:
        request.ask(failing, prepared)
    except (BridgeError, OSError) as error:
        return _explained(error)
    else:
        return None
    finally:
        faults.number, faults.after_bytes = 0, None
        for runtime in lunatik.runtimes():
            with suppress(ModuleError):
                lunatik.stop(runtime.id, missing_ok=True)
        assert lunatik.info().runtimes == 0


def _explained(error: BridgeError | OSError) -> str:
    code = getattr(error, "errno", None)
    return os.strerror(code) if code in (errno.ENOMEM, errno.ENOBUFS) else str(error)


def _wrong(name: str) -> str:
    return r"expected" if "wrong" in name else OUT_OF_MEMORY


@pytest.mark.parametrize("name", REQUESTS)
def test_each_allocation_that_fails_alone_ends_cleanly(
    failing, lunatik, faults, *, long_run, name, tally
):
    for number in range(1, MANY, 1 if long_run else STRIDE):
        faults.number = number
        error = _try(failing, lunatik, faults, name)
        assert error is None or re.search(f"{_wrong(name)}|{OUT_OF_MEMORY}", error), (
            number,
            error,
        )
        if not faults.reached:
            break
    assert not faults.reached, f"more than {MANY} allocations"
    assert number > 1
    tally(f"{number - 1} allocations of the kernel failed in turn")


@pytest.mark.parametrize("name", REQUESTS)
def test_running_out_of_memory_at_any_moment_ends_cleanly(
    failing, lunatik, faults, *, long_run, name, tally
):
    for step in range(MANY):
        faults.after_bytes = step * (64 if long_run else BYTES_STRIDE)
        error = _try(failing, lunatik, faults, name)
        assert error is None or re.search(f"{_wrong(name)}|{OUT_OF_MEMORY}", error), (
            step,
            error,
        )
        if not faults.reached:
            break
    assert not faults.reached
    assert step > 0, "nothing failed"
    tally(f"{step} times the kernel ran out of memory")


def test_the_faults_reach_the_module(failing, lunatik, faults):
    faults.after_bytes = 4096
    with pytest.raises((BridgeError, OSError), match=OUT_OF_MEMORY):  # the answer fails, too
        failing.runtime("echo")
    assert faults.reached
