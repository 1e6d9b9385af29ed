"""The messages of the generic netlink family "lunatik", as kmod/uapi/lunatik.h has them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

FAMILY = "lunatik"
EVENTS = "events"

Value = None | bool | int | str | bytes
"""What crosses between Python and Lua. A str travels as UTF-8, results are bytes."""


class Command(IntEnum):
    """enum lunatik_cmd."""

    INFO_GET = 1
    CREATE = 2
    RUNTIME_GET = 3
    RESUME = 4
    STOP = 5
    REPLACE = 6
    HOOK_GET = 7
    EVENT = 8


class State(IntEnum):
    """enum lunatik_state: where a runtime stands in its life."""

    CREATING = 0
    YIELDED = 1
    FINISHED = 2
    FAILED = 3
    RUNNING = 4
    STOPPED = 5


class LunatikMessage(genlmsg):  # type: ignore[misc]
    """A request or reply of the family."""

    prefix = "LUNATIK_A_"
    nla_map = (
        ("LUNATIK_A_UNSPEC", "none"),
        ("LUNATIK_A_ID", "uint32"),
        ("LUNATIK_A_NAME", "asciiz"),
        ("LUNATIK_A_SOURCE", "cdata"),
        ("LUNATIK_A_SLEEP", "uint8"),
        ("LUNATIK_A_NETNS_FD", "uint32"),
        ("LUNATIK_A_NETNS_INO", "uint32"),
        ("LUNATIK_A_STATE", "uint32"),
        ("LUNATIK_A_VALUES", "lua_values"),
        ("LUNATIK_A_VALUE", "none"),
        ("LUNATIK_A_MEMORY", "uint64"),
        ("LUNATIK_A_MEMORY_LIMIT", "uint64"),
        ("LUNATIK_A_BUDGET", "uint64"),
        ("LUNATIK_A_HOOKS", "uint32"),
        ("LUNATIK_A_CALLS", "uint64"),
        ("LUNATIK_A_ERRORS", "uint64"),
        ("LUNATIK_A_LAST_ERROR", "asciiz"),
        ("LUNATIK_A_VERSION", "asciiz"),
        ("LUNATIK_A_LUA_VERSION", "asciiz"),
        ("LUNATIK_A_LUA_ROOT", "asciiz"),
        ("LUNATIK_A_RUNTIMES", "uint32"),
        ("LUNATIK_A_PAD", "none"),
        ("LUNATIK_A_PERCPU", "uint8"),
        ("LUNATIK_A_GENERATION", "uint32"),
        ("LUNATIK_A_HOOK", "uint32"),
        ("LUNATIK_A_PF", "uint32"),
        ("LUNATIK_A_HOOKNUM", "uint32"),
        ("LUNATIK_A_PRIORITY", "int32"),
        ("LUNATIK_A_IFINDEX", "uint32"),
        ("LUNATIK_A_MARK", "uint32"),
        ("LUNATIK_A_ONERROR", "uint32"),
        ("LUNATIK_A_PACKETS", "uint64"),
        ("LUNATIK_A_ACCEPTED", "uint64"),
        ("LUNATIK_A_DROPPED", "uint64"),
        ("LUNATIK_A_QUEUED", "uint64"),
        ("LUNATIK_A_BUDGET_HITS", "uint64"),
        ("LUNATIK_A_REENTERED", "uint64"),
        ("LUNATIK_A_TIME", "uint64"),
        ("LUNATIK_A_HISTOGRAM", "histogram"),
        ("LUNATIK_A_BUCKET", "uint64"),
        ("LUNATIK_A_BREAKER", "uint32"),
        ("LUNATIK_A_EVENT", "uint32"),
        ("LUNATIK_A_WHEN", "uint64"),
        ("LUNATIK_A_OUTCOME", "uint32"),
        ("LUNATIK_A_REASON", "uint32"),
        ("LUNATIK_A_MESSAGE", "asciiz"),
        ("LUNATIK_A_SUPPRESSED", "uint32"),
    )

    class histogram(nla):  # type: ignore[misc]  # noqa: N801
        """LUNATIK_A_HISTOGRAM: a list of LUNATIK_A_BUCKET."""

        nla_flags = NLA_F_NESTED
        nla_map = ((21, "LUNATIK_A_PAD", "none"), (39, "LUNATIK_A_BUCKET", "uint64"))

    class lua_values(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 looks nests up by name
        """LUNATIK_A_VALUES: a list of LUNATIK_A_VALUE."""

        nla_flags = NLA_F_NESTED
        nla_map = ((9, "LUNATIK_A_VALUE", "lua_value"),)

        class lua_value(nla):  # type: ignore[misc]  # noqa: N801
            """LUNATIK_A_VALUE: one Lua value."""

            prefix = "LUNATIK_V_"
            nla_flags = NLA_F_NESTED
            nla_map = (
                ("LUNATIK_V_UNSPEC", "none"),
                ("LUNATIK_V_NIL", "flag"),
                ("LUNATIK_V_BOOLEAN", "uint8"),
                ("LUNATIK_V_INTEGER", "int64"),
                ("LUNATIK_V_STRING", "cdata"),
                ("LUNATIK_V_PAD", "none"),
            )


def pack_values(values: tuple[Value, ...]) -> dict[str, Any]:
    """Return the nest LUNATIK_A_VALUES of ``values``.

    Raises TypeError for a value that Lua has no counterpart of, and OverflowError
    for an integer outside 64 bits.
    """
    return {"attrs": [("LUNATIK_A_VALUE", {"attrs": [_pack(v)]}) for v in values]}


def _pack(value: Value) -> tuple[str, Any]:
    match value:
        case None:
            return "LUNATIK_V_NIL", True
        case bool():
            return "LUNATIK_V_BOOLEAN", int(value)
        case int():
            if not -(2**63) <= value < 2**63:
                raise OverflowError(f"{value} does not fit a Lua integer of 64 bits")
            return "LUNATIK_V_INTEGER", value
        case str():
            return "LUNATIK_V_STRING", value.encode()
        case bytes():
            return "LUNATIK_V_STRING", value
    raise TypeError(f"a {type(value).__name__} cannot be passed to Lua: {value!r}")


def unpack_values(message: Any) -> tuple[Value, ...]:
    """Return the values that a reply carries; strings are bytes."""
    nest = message.get_attr("LUNATIK_A_VALUES")
    return tuple(_unpack(one["attrs"][0]) for _, one in _pairs(nest)) if nest else ()


def _pairs(nest: Any) -> list[tuple[str, Any]]:
    return [(pair[0], pair[1]) for pair in nest["attrs"]]


def _unpack(attr: Any) -> Value:
    name, value = attr[0], attr[1]
    match name:
        case "LUNATIK_V_BOOLEAN":
            return bool(value)
        case "LUNATIK_V_INTEGER":
            return int(value)
        case "LUNATIK_V_STRING":
            return bytes(value)
    return None


class Connection:
    """A netlink socket of the family. Raises NetlinkError while it is not registered."""

    def __init__(self) -> None:
        GenericNetlinkSocket.module_err_level = "debug"
        self._socket = GenericNetlinkSocket(ext_ack=True)
        try:
            self._socket.bind(FAMILY, LunatikMessage)
        except BaseException:
            self._socket.close()
            raise

    @property
    def events_group(self) -> int:
        """The number of the multicast group that tells of events."""
        group: int = self._socket.mcast_groups[EVENTS]
        return group

    def request(self, command: Command, attrs: list[Any], *, dump: bool = False) -> list[Any]:
        """Send a request and return the replies; raises NetlinkError."""
        message = LunatikMessage()
        message["cmd"] = int(command)
        message["version"] = 1
        message["attrs"] = attrs
        flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
        if command is Command.STOP:
            flags |= NLM_F_ACK
        return list(self._socket.nlm_request(message, self._socket.prid, msg_flags=flags))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


__all__ = [
    "Command",
    "Connection",
    "NetlinkError",
    "State",
    "Value",
    "pack_values",
    "unpack_values",
]
