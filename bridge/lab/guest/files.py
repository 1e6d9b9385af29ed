"""Files on their way into the guest: single ones, and trees that mirror the host's."""

import fcntl
import os
from collections.abc import Callable

from .frames import pack, unpack

RUN = "/run/lab"


class Incoming:
    """A file on its way in; it takes its place only when it is whole."""

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._scratch = f"{path}.lab-incoming"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._fd = os.open(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        os.fchmod(self._fd, mode)

    def write(self, data: bytes) -> None:
        """Append to the file."""
        while data:
            data = data[os.write(self._fd, data) :]

    def commit(self, mtime_ns: int | None = None) -> None:
        """Put the file in its place."""
        os.close(self._fd)
        if mtime_ns is not None:
            os.utime(self._scratch, ns=(mtime_ns, mtime_ns))
        os.replace(self._scratch, self._path)

    def abort(self) -> None:
        """Leave no trace of the file."""
        os.close(self._fd)
        os.unlink(self._scratch)


class Task:
    """A transfer from the host that takes several frames.

    ``failure`` says what went wrong first; the host is told at the end.
    """

    def __init__(self) -> None:
        self.failure = ""
        self.file: Incoming | None = None

    def step(self, verb: str, fields: list[bytes]) -> bool:
        """Handle one frame; return whether it was the last."""
        if not self.failure:
            self.attempt(lambda: self.handle(verb, fields))
        return verb == "END"

    def attempt(self, action: Callable[[], None]) -> None:
        """Do something, keeping what goes wrong as the failure."""
        try:
            action()
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            self.failure = f"{where}{error.strerror}"

    def handle(self, verb: str, fields: list[bytes]) -> None:
        """Handle one frame; may raise OSError."""
        if verb == "DATA" and self.file:
            self.file.write(fields[0])

    def close(self) -> None:
        """Give up what is not complete."""
        if self.file:
            self.file.abort()
            self.file = None


class Put(Task):
    """One file."""

    def __init__(self, path: str, mode: int) -> None:
        super().__init__()
        self.attempt(lambda: self._begin(path, mode))

    def _begin(self, path: str, mode: int) -> None:
        self.file = Incoming(path, mode)

    def handle(self, verb: str, fields: list[bytes]) -> None:
        """Take data, or put the file in its place."""
        super().handle(verb, fields)
        if verb == "END" and self.file:
            file, self.file = self.file, None
            file.commit()


class Tree(Task):
    """A directory that mirrors one of the host, read-only for everyone else.

    ``have`` maps each path to its meta (mode, size, mtime), and is kept in a file
    between transfers. Close the tree also where the transfer fails.
    """

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory
        self._state = f"{RUN}/tree-{directory.strip('/').replace('/', '-')}"
        self._lock = os.open(f"{self._state}.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._writable = False
        self._name = self._meta = ""
        self.have: dict[str, str] = {}
        self.attempt(self._load)

    def manifest(self) -> bytes:
        """Return path and meta of every file there is, one after the other."""
        return pack([item for pair in self.have.items() for item in pair])

    def handle(self, verb: str, fields: list[bytes]) -> None:
        """Take one step of the transfer."""
        if verb == "DATA":
            super().handle(verb, fields)
            return
        self._finish_file()
        if verb == "END":
            return
        self._unlock()
        name = os.fsdecode(fields[0])
        path = f"{self._directory}/{name}"
        self.have.pop(name, None)
        if verb == "FILE":
            self._name, self._meta = name, fields[1].decode()
            self.file = Incoming(path, int(self._meta.split()[0], 8))
        elif verb == "LINK":
            self._link(path, fields[1])
            self.have[name] = fields[2].decode()
        elif verb == "GONE":
            self._remove(path)

    def close(self) -> None:
        """Write down what there is now, and lock the tree again."""
        super().close()
        if self._writable:
            self.attempt(self._save)
            self.attempt(lambda: self._mount("-o", "remount,ro"))
        os.close(self._lock)

    def _load(self) -> None:
        if not os.path.exists(self._state):
            os.makedirs(self._directory, exist_ok=True)
            self._mount("-t", "tmpfs", "-o", "ro,mode=0755", "tree")
            self._save()
        with open(self._state, "rb") as file:
            items = unpack(file.read())
        self.have = dict(zip(items[::2], items[1::2], strict=True))

    def _save(self) -> None:
        scratch = f"{self._state}.new"
        with open(scratch, "wb") as file:
            file.write(self.manifest())
        os.replace(scratch, self._state)

    def _unlock(self) -> None:
        if not self._writable:
            self._mount("-o", "remount,rw")
            self._writable = True

    def _mount(self, *args: str) -> None:
        argv = ["busybox", "mount", *args, self._directory]
        if os.spawnv(os.P_WAIT, "/usr/bin/busybox", argv) != 0:
            raise OSError(0, "cannot be mounted", self._directory)

    def _finish_file(self) -> None:
        if self.file:
            file, self.file = self.file, None
            file.commit(int(self._meta.split()[2]))
            self.have[self._name] = self._meta

    def _link(self, path: str, target: bytes) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)

    def _remove(self, path: str) -> None:
        if os.path.lexists(path):
            os.unlink(path)
        parent = os.path.dirname(path)
        while parent != self._directory and not os.listdir(parent):
            os.rmdir(parent)
            parent = os.path.dirname(parent)
