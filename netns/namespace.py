"""Named network namespaces: make one, enter it, remove it.

pyroute2 can do this too, but it forks a Python process for each namespace, which
Python 3.12 and later warn about once a thread runs. Three system calls in the calling
thread do the same and leave nothing behind when one of them fails.

Sources: network_namespaces(7), setns(2), unshare(2), mount(2), ip-netns(8).
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import EnvironmentLacking, TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path("/run/netns")  # where ip-netns(8) looks
OWN_NAMESPACE = "/proc/thread-self/ns/net"

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> Path:
    """Make a network namespace that is known as ``name``, and return its path.

    The calling thread stays in the namespace it was in. Raises EnvironmentLacking
    without CAP_SYS_ADMIN and TopologyError where the name is taken.
    """
    path = DIRECTORY / name
    _prepare_directory()
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0))
    except FileExistsError as error:
        raise TopologyError(
            f"network namespace {name} exists already", cure=f"ip netns delete {name}"
        ) from error
    home = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET)
        _call("mount", OWN_NAMESPACE.encode(), bytes(path), b"none", _MS_BIND, None)
    except BaseException:
        path.unlink()
        raise
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)
    return path


def remove(name: str) -> None:
    """Forget the name; the kernel frees the namespace with its last user.

    A name that does not exist is no error, so that removal can be repeated.
    """
    path = DIRECTORY / name
    try:
        _call("umount2", bytes(path), _MNT_DETACH)
    except OSError as error:
        # Not a mount: it was made up to the file only, or unmounted already.
        if error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise TopologyError(f"cannot unmount {path}: {error.strerror}") from error
    path.unlink(missing_ok=True)


@contextmanager
def entered(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let the calling thread, and no other, work in the namespace at ``path``.

    Sockets opened and processes started inside belong to that namespace for good;
    /proc/sys/net shows its settings. Raises TopologyError when it cannot be entered.
    """
    home = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TopologyError(f"no network namespace at {path}: {error.strerror}") from error
        try:
            _call("setns", target, _CLONE_NEWNET)
            yield
        finally:
            os.close(target)
            _call("setns", home, _CLONE_NEWNET)
    finally:
        os.close(home)


def processes_inside(inode: int) -> list[tuple[int, str]]:
    """Return (pid, command name) of each other process in the namespace ``inode``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if (entry / "ns/net").stat().st_ino == inode:
                found.append((int(entry.name), (entry / "comm").read_text().strip()))
        except OSError:
            continue  # it ended while we looked
    return found


def _prepare_directory() -> None:
    """Make /run/netns a shared mount, as ip-netns(8) does.

    Names made here are then seen, and can be removed, in other mount namespaces.
    """
    try:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise _not_permitted() from error
    target = bytes(DIRECTORY)
    try:
        _call("mount", b"none", target, b"none", _MS_SHARED | _MS_REC, None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise TopologyError(f"cannot share {DIRECTORY}: {error.strerror}") from error
        _call("mount", target, target, b"none", _MS_BIND | _MS_REC, None)
        _call("mount", b"none", target, b"none", _MS_SHARED | _MS_REC, None)


def _call(function: str, *arguments: int | bytes | None) -> None:
    """Call one libc function; raises OSError, or EnvironmentLacking for EPERM."""
    if getattr(_libc, function)(*arguments) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise _not_permitted()
    raise OSError(code, f"{function}: {os.strerror(code)}")


def _not_permitted() -> EnvironmentLacking:
    return EnvironmentLacking(
        "network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN, which this process lacks",
        cure="run it in the lab, which needs no privilege: lunabridge lab run -- COMMAND",
    )
