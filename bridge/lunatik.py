"""The client of the kernel module: load it, create runtimes, drive them.

    with Lunatik.load() as lunatik:
        with lunatik.runtime("drop_port", sleep=False, netns="router") as runtime:
            runtime.resume("add", 53)

Everything here acts on the running kernel and needs CAP_SYS_ADMIN in the initial
user namespace, as in the lab.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bridge.errors import BridgeError, LuaError, ModuleError, UsageError
from bridge.hookinfo import HookInfo
from bridge.netlink import (
    Command,
    Connection,
    NetlinkError,
    State,
    Value,
    pack_values,
    unpack_values,
)
from bridge.parts import part
from bridge.runtime_events import Events

__all__ = ["HookInfo", "Info", "Lunatik", "Runtime", "RuntimeInfo", "State", "Value"]

GUEST_MODULE = Path("/run/lunatik/lunatik.ko")
LOADED = Path("/sys/module/lunatik")
LUA_ROOT = part("lua")
SOURCE_MAX_BYTES = 60 * 1024
_LUA_ERRNO = {errno.ENOEXEC, errno.ENOENT, errno.ENOMEM}
_CURES = {
    errno.EPERM: "run it as root, or in the lab: lunabridge lab run -- COMMAND",
}


@dataclass(frozen=True, slots=True)
class Info:
    """What is loaded: releases of the module and of Lua, the Lua root, runtimes alive.

    ``memory_bytes`` is what all Lua states have taken, up to 32 KiB each more than
    they use, and ``memory_limit_bytes`` what they may take.
    """

    version: str
    lua_version: str
    lua_root: str
    runtimes: int
    memory_bytes: int
    memory_limit_bytes: int


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """One runtime as the kernel describes it; memory in bytes, budget in instructions.

    ``netns`` is the inode number of its network namespace, 0 once that is gone.
    ``percpu`` says whether it has a Lua state per CPU, each with that memory limit;
    ``generation`` counts the scripts it has run; ``breaker`` is how many callbacks may
    fail in a row before it is stopped, 0 for any number.
    """

    id: int
    name: str
    sleep: bool
    percpu: bool
    generation: int
    breaker: int
    netns: int
    state: State
    memory_bytes: int
    memory_limit_bytes: int
    budget: int
    hooks: int
    calls: int
    errors: int
    last_error: str | None

    @classmethod
    def _of(cls, message: Any) -> RuntimeInfo:
        def get(name: str) -> Any:
            return message.get_attr(f"LUNATIK_A_{name}")

        return cls(
            id=get("ID"),
            name=get("NAME"),
            sleep=bool(get("SLEEP")),
            percpu=bool(get("PERCPU")),
            generation=get("GENERATION"),
            breaker=get("BREAKER"),
            netns=get("NETNS_INO"),
            state=State(get("STATE")),
            memory_bytes=get("MEMORY"),
            memory_limit_bytes=get("MEMORY_LIMIT"),
            budget=get("BUDGET"),
            hooks=get("HOOKS"),
            calls=get("CALLS"),
            errors=get("ERRORS"),
            last_error=get("LAST_ERROR"),
        )


class Runtime:
    """A runtime in the kernel; stopped when its with block ends."""

    def __init__(self, lunatik: Lunatik, info: RuntimeInfo) -> None:
        self._lunatik = lunatik
        self.id = info.id
        self.name = info.name
        self._stopped = False

    def resume(self, *args: Value) -> Value | tuple[Value, ...]:
        """Continue the script where it last yielded; return what it yields or returns.

        One result comes back as such, none as None, several as a tuple; Lua strings
        are bytes. Raises LuaError when the script fails or cannot be resumed.
        """
        attrs = [("LUNATIK_A_ID", self.id), ("LUNATIK_A_VALUES", pack_values(args))]
        reply = self._lunatik.request(Command.RESUME, attrs)[0]
        results = unpack_values(reply)
        return results[0] if len(results) == 1 else results or None

    def replace(self, script: str | Path, *, source: str | bytes | None = None) -> None:
        """Let another script take over, with no packet unfiltered in between.

        ``script`` and ``source`` are those of Lunatik.runtime(). What the old script's
        global function handover() returns is passed to the new one's takeover().
        Raises LuaError when the new script is missing or fails, or when a value cannot
        be handed over; the old script then stays in charge.
        """
        name, attrs = _script_attrs(script, source)
        self._lunatik.request(Command.REPLACE, [("LUNATIK_A_ID", self.id), *attrs])
        self.name = name

    def info(self) -> RuntimeInfo:
        """Return what the kernel says of the runtime; raises ModuleError once stopped."""
        reply = self._lunatik.request(Command.RUNTIME_GET, [("LUNATIK_A_ID", self.id)])
        return RuntimeInfo._of(reply[0])

    def hooks(self) -> list[HookInfo]:
        """Return the hooks in force and their counters; raises ModuleError once stopped."""
        return self._lunatik.hooks(self.id)

    def stop(self) -> None:
        """Unregister the hooks, close the Lua state, free every byte; twice is harmless."""
        if not self._stopped:
            self._lunatik.stop(self.id, missing_ok=True)
            self._stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Lunatik:
    """A connection to the loaded module; see load() and connect()."""

    def __init__(self, *, loaded_here: bool = False) -> None:
        try:
            self._connection = Connection()
        except NetlinkError as error:
            raise ModuleError(
                "the kernel module lunatik is not loaded",
                errno=error.code,
                cure="Lunatik.load() loads it; in the lab every command finds it built",
            ) from error
        self._loaded_here = loaded_here
        self._created: set[int] = set()

    @classmethod
    def connect(cls) -> Self:
        """Connect to the module that is loaded; raises ModuleError when none is."""
        return cls()

    @classmethod
    def load(
        cls, module: Path | None = None, *, root: Path | None = None, **parameters: int
    ) -> Self:
        """Load the module unless it is loaded, and connect.

        ``root`` is the directory scripts are looked up in; ``parameters`` are the
        module's: memory_limit and total_memory (bytes), budget and body_budget (Lua
        instructions), body_time (ms of CPU), body_wait (ms), object_memory (bytes),
        timing (1 to take the time of every callback).
        A module loaded here is unloaded by close(). A loaded one that was built from
        other sources is replaced if nothing uses it. Raises ModuleError.
        """
        path = module or GUEST_MODULE
        if LOADED.exists() and _is_stale(path):
            _run(["rmmod", "lunatik"])
        if LOADED.exists():
            if parameters or root:
                raise UsageError(
                    "the module is loaded already, so its parameters cannot be chosen",
                    cure="unload it first: rmmod lunatik",
                )
            return cls()
        if not path.exists():
            raise ModuleError(
                f"{path} does not exist", cure="build it: make -C kmod, and name it"
            )
        chosen = {"root": str(root or LUA_ROOT), **parameters}
        _run(["insmod", str(path), *(f"{key}={value}" for key, value in chosen.items())])
        return cls(loaded_here=True)

    def keep(self) -> None:
        """Let close() leave the module loaded, also where it was loaded here."""
        self._loaded_here = False

    def unload(self) -> None:
        """Unload the module; raises ModuleError (EBUSY) while runtimes exist."""
        alive = self.info().runtimes
        if alive:
            raise ModuleError(
                f"lunatik is in use by {alive} runtime{'s' if alive > 1 else ''}",
                errno=errno.EBUSY,
                cure="stop them first: lunabridge list, lunabridge stop",
            )
        self._connection.close()
        _run(["rmmod", "lunatik"])
        self._loaded_here = False

    def runtime(
        self,
        script: str | Path,
        *,
        sleep: bool = True,
        percpu: bool = False,
        breaker: int = 0,
        netns: str | None = None,
        source: str | bytes | None = None,
    ) -> Runtime:
        """Create a runtime and run its script's body.

        ``script`` names a file below the Lua root ("foo.bar" or "foo/bar"); as a Path
        it is any file, whose text is sent; with ``source`` it only names that text.
        ``netns`` is the name of a network namespace or a path, the caller's by
        default. With ``percpu`` the script runs in a Lua state per CPU, each of which
        sees the packets of its CPU; not with ``sleep``. After ``breaker``
        callbacks that failed in a row, in one Lua state, it is stopped, unless that is
        0; not with ``sleep``. Raises LuaError when the script is missing or fails,
        UsageError, ModuleError.
        """
        _, attrs = _script_attrs(script, source)
        attrs += [("LUNATIK_A_SLEEP", int(sleep)), ("LUNATIK_A_PERCPU", int(percpu))]
        if breaker:
            attrs.append(("LUNATIK_A_BREAKER", breaker))
        with _open_netns(netns) as fd:
            if fd is not None:
                attrs.append(("LUNATIK_A_NETNS_FD", fd))
            reply = self.request(Command.CREATE, attrs)[0]
        info = RuntimeInfo._of(reply)
        self._created.add(info.id)
        return Runtime(self, info)

    def runtimes(self) -> list[RuntimeInfo]:
        """Return all runtimes, in the order of their creation."""
        replies = self.request(Command.RUNTIME_GET, [], dump=True)
        return [RuntimeInfo._of(reply) for reply in replies]

    def hooks(self, runtime_id: int | None = None) -> list[HookInfo]:
        """Return the hooks in force, of one runtime or of all, in one reading.

        Raises ModuleError (ESRCH) for the number of no runtime.
        """
        attrs = [] if runtime_id is None else [("LUNATIK_A_ID", runtime_id)]
        replies = self.request(Command.HOOK_GET, attrs, dump=True)
        return [HookInfo.of(reply) for reply in replies]

    def events(self, *, buffer_bytes: int = 1 << 20) -> Events:
        """Listen to what happens to runtimes from now on, to all of them.

        Needs CAP_SYS_ADMIN and a network namespace of the initial user namespace.
        Raises ModuleError.
        """
        return Events(self._connection.events_group, buffer_bytes=buffer_bytes)

    def stop(self, runtime_id: int, *, missing_ok: bool = False) -> None:
        """Stop a runtime by its number; raises ModuleError (ESRCH) for an unknown one."""
        try:
            self.request(Command.STOP, [("LUNATIK_A_ID", runtime_id)])
        except ModuleError as error:
            if not (missing_ok and error.errno == errno.ESRCH):
                raise
        self._created.discard(runtime_id)

    def info(self) -> Info:
        """Return what is loaded. Needs no privilege."""
        reply = self.request(Command.INFO_GET, [])[0]
        return Info(
            version=reply.get_attr("LUNATIK_A_VERSION"),
            lua_version=reply.get_attr("LUNATIK_A_LUA_VERSION"),
            lua_root=reply.get_attr("LUNATIK_A_LUA_ROOT"),
            runtimes=reply.get_attr("LUNATIK_A_RUNTIMES"),
            memory_bytes=reply.get_attr("LUNATIK_A_MEMORY"),
            memory_limit_bytes=reply.get_attr("LUNATIK_A_MEMORY_LIMIT"),
        )

    def request(self, command: Command, attrs: list[Any], *, dump: bool = False) -> list[Any]:
        """Send a request and return the replies; raises LuaError or ModuleError."""
        try:
            return self._connection.request(command, attrs, dump=dump)
        except NetlinkError as error:
            raise _explained(error) from error

    def close(self) -> None:
        """Stop the runtimes created here; unload the module if it was loaded here.

        It stays loaded where somebody else's runtimes need it.
        """
        with ExitStack() as stack:
            stack.callback(self._connection.close)
            for runtime_id in sorted(self._created):
                self.stop(runtime_id, missing_ok=True)
            if self._loaded_here and self.info().runtimes == 0:
                self.unload()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _explained(error: NetlinkError) -> BridgeError:
    text = str(error.args[1]).rstrip("\0")
    if error.code in _LUA_ERRNO:
        message, _, traceback = text.partition("\nstack traceback:\n")
        return LuaError(message, traceback=traceback or None)
    return ModuleError(text, errno=error.code, cure=_CURES.get(error.code))


def _is_stale(path: Path) -> bool:
    """Whether the loaded module is idle and not the one at ``path``."""
    if (LOADED / "refcnt").read_text().strip() != "0" or not path.exists():
        return False
    wanted = subprocess.run(
        ["modinfo", "-F", "srcversion", str(path)], capture_output=True, text=True, check=False
    )
    return wanted.stdout.strip() != (LOADED / "srcversion").read_text().strip()


def _script_attrs(
    script: str | Path, source: str | bytes | None
) -> tuple[str, list[tuple[str, Any]]]:
    """Return the name of a script, and the attributes that name it and carry its text."""
    if isinstance(script, Path):
        source, script = _read(script), script.stem
    attrs: list[tuple[str, Any]] = [("LUNATIK_A_NAME", script)]
    if source is not None:
        attrs.append(("LUNATIK_A_SOURCE", _checked_source(source)))
    return script, attrs


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _checked_source(source: str | bytes) -> bytes:
    text = source.encode() if isinstance(source, str) else source
    if len(text) > SOURCE_MAX_BYTES:
        raise UsageError(
            f"the script has {len(text)} bytes, at most {SOURCE_MAX_BYTES} can be sent",
            cure="put it, or parts of it, below the Lua root and require them",
        )
    return text


@contextmanager
def _open_netns(netns: str | None) -> Iterator[int | None]:
    if netns is None:
        yield None
        return
    path = Path(netns) if "/" in netns else Path("/run/netns") / netns
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"no network namespace {netns}: {error.strerror}", cure="ip netns list shows them"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModuleError(
            done.stderr.strip() or f"{argv[0]} failed", cure=_insmod_cure(done.stderr)
        )


def _insmod_cure(stderr: str) -> str | None:
    if "not permitted" in stderr:
        return _CURES[errno.EPERM]
    if "Key was rejected" in stderr:
        return "Secure Boot refuses unsigned modules; the lab does not: lunabridge lab run"
    return None
