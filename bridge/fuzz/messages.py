"""Requests of the netlink family: well formed ones, and what mutation makes of them.

Which commands there are and which attributes each takes is asked of the kernel
(CTRL_CMD_GETPOLICY), so that a new command is tried without anything being said here.
bridge.fuzz.sending sends them.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bridge.netlink import FAMILY, LunatikMessage

_NETLINK_GENERIC, _SOL_NETLINK, _NO_ENOBUFS = 16, 270, 5
_CTRL, _GETFAMILY, _GETPOLICY = 0x10, 3, 10
_POLICY_DUMP = 2
_FAMILY_ID, _FAMILY_NAME, _POLICY, _OP_POLICY = 1, 2, 8, 9
REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
ERROR, _DONE = 2, 3
_NESTED, _BYTE_ORDER, _TYPE = 0x8000, 0x4000, 0x3FFF
_HEADER = struct.Struct("=IHHIIBBH")
_REPLIES_BYTES = 8 << 20

# enum netlink_attribute_type; the integers have their width in bytes.
_INTEGERS = {2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 2, 8: 4, 9: 8}
_FLAG, _NESTED_TYPES = 1, (13, 14)

HOOK = (
    b"local nf = require 'netfilter' nf.register{pf = nf.family.INET, hooknum = 3,"
    b" priority = 0, hook = function() return 1 end} coroutine.yield()"
)
_SOURCES = (
    b"",
    b"return 1, 'two', true, nil",
    b"while true do coroutine.yield(1) end",
    b"local v = table.pack(...) while true do v = table.pack(coroutine.yield(v[1])) end",
    b"error{}",
    b"error('x')",
    b"while true do end",
    b"syntax error",
    b"\x1bLua\x54\0\x19\x93\r\n\x1a\n",
    b"return {}",
    b"local t = {} while true do t[#t + 1] = {} end",
    b"return lunatik.runtime('echo'):resume(1)",
    HOOK,
    b"--" + b"x" * 60_000,
)
_NAMES = (b"echo\0", b"dns_block\0", b"accept\0", b"no/such\0", b"../x\0", b"\0",
          b"echo", b"x" * 63 + b"\0", b"x" * 64 + b"\0", b"\xff\xfe\0", b"a.b.c\0",
          b"e\0cho\0")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attribute:
    """What the kernel says an attribute has to be; see enum netlink_policy_type_attr."""

    kind: int
    low: int = 0
    high: int = 2**64 - 1
    longest: int = 64


@dataclass(frozen=True, slots=True)
class Family:
    """The family as the kernel describes it: its number, and commands with attributes.

    ``dumps`` are the commands that only answer to a dump.
    """

    number: int
    commands: dict[int, dict[int, Attribute]]
    dumps: frozenset[int] = frozenset()

    @classmethod
    def ask(cls) -> Family:
        """Ask the kernel about the family; it has to be registered."""
        with generic_socket() as sock:
            name = FAMILY.encode() + b"\0"
            answer = _talk(sock, _ctrl(_GETFAMILY, REQUEST, _FAMILY_NAME, name))
            number = struct.unpack("=H", dict(pairs(answer[0][20:]))[_FAMILY_ID])[0]
            wanted = struct.pack("=H", number)
            answers = _talk(sock, _ctrl(_GETPOLICY, REQUEST | _DUMP, _FAMILY_ID, wanted))
        operations: dict[int, int] = {}
        dumps: set[int] = set()
        policies: dict[int, dict[int, Attribute]] = {}
        for answer_ in answers:
            for kind, payload in pairs(answer_[20:]):
                if kind == _OP_POLICY:
                    for operation, either in pairs(payload):
                        way, index = next(pairs(either))
                        operations[operation] = _word(index)
                        if way == _POLICY_DUMP:
                            dumps.add(operation)
                elif kind == _POLICY:
                    for table, attributes in pairs(payload):
                        policy = {n: _attribute(text) for n, text in pairs(attributes)}
                        policies.setdefault(table, {}).update(policy)
        commands = {op: policies.get(index, {}) for op, index in operations.items()}
        return cls(number, commands, frozenset(dumps))


def _attribute(text: bytes) -> Attribute:
    found = dict(pairs(text))
    signed = 2 in found
    low, high = found.get(2 if signed else 4), found.get(3 if signed else 5)
    return Attribute(
        kind=_word(found[1]),
        low=int.from_bytes(low, "little", signed=signed) if low else 0,
        high=int.from_bytes(high, "little", signed=signed) if high else 2**64 - 1,
        longest=_word(found[7]) if 7 in found else 64,
    )


def _word(payload: bytes) -> int:
    return int(struct.unpack("=I", payload[:4])[0])


def pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of each attribute in ``data``."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & _TYPE, data[4:length]
        data = data[max(4, (length + 3) & ~3) :]


def attribute(kind: int, payload: bytes, length: int | None = None) -> bytes:
    """Return an attribute, padded; ``length`` is what its header claims."""
    claimed = len(payload) + 4 if length is None else length
    return struct.pack("=HH", claimed & 0xFFFF, kind) + payload + b"\0" * (-len(payload) % 4)


def _ctrl(command: int, flags: int, kind: int, payload: bytes) -> bytes:
    body = attribute(kind, payload)
    return _HEADER.pack(_HEADER.size + len(body), _CTRL, flags, 1, 0, command, 1, 0) + body


def generic_socket() -> socket.socket:
    """Return a generic netlink socket that loses replies rather than complain."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
    sock.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _REPLIES_BYTES)
    sock.bind((0, 0))
    return sock


def _talk(sock: socket.socket, message: bytes) -> list[bytes]:
    sock.send(message)
    found: list[bytes] = []
    while True:
        for kind, flags, _sequence, part in split(sock.recv(1 << 17)):
            if kind in (ERROR, _DONE):
                return found
            found.append(part)
            if not flags & 2:  # NLM_F_MULTI: more follows
                return found


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, sequence number and bytes of each message in ``data``."""
    while len(data) >= 16:
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
        yield kind, flags, sequence, data[:length]
        data = data[max(16, (length + 3) & ~3) :]


# ---- making messages ------------------------------------------------------


@dataclass(slots=True)
class Draft:
    """A message before it is bytes; each attribute is type, payload, claimed length."""

    kind: int
    command: int
    flags: int = REQUEST
    version: int = 1
    reserved: int = 0
    length: int | None = None
    attributes: list[tuple[int, bytes, int | None]] = field(default_factory=list)
    tail: bytes = b""

    def pack(self, sequence: int) -> bytes:
        """Return the bytes of the message."""
        body = b"".join(attribute(*one) for one in self.attributes) + self.tail
        length = _HEADER.size + len(body) if self.length is None else self.length
        header = (self.kind, self.flags, sequence, 0, self.command, self.version, self.reserved)
        return _HEADER.pack(length & 0xFFFFFFFF, *header) + body


Mutation = Callable[[random.Random, Draft], None]
_mutations: list[Mutation] = []


def _mutation(function: Mutation) -> Mutation:
    _mutations.append(function)
    return function


def _pick(rng: random.Random, draft: Draft) -> int | None:
    return rng.randrange(len(draft.attributes)) if draft.attributes else None


@_mutation
def _drop(rng: random.Random, draft: Draft) -> None:
    if (at := _pick(rng, draft)) is not None:
        del draft.attributes[at]


@_mutation
def _duplicate(rng: random.Random, draft: Draft) -> None:
    if (at := _pick(rng, draft)) is not None:
        copies = rng.choice((1, 1, 2, 200))
        draft.attributes[at:at] = [draft.attributes[at]] * copies


@_mutation
def _swap_types(rng: random.Random, draft: Draft) -> None:
    if (at := _pick(rng, draft)) is not None:
        kind, payload, length = draft.attributes[at]
        kind = rng.choice(
            (rng.randrange(64), rng.randrange(65536), kind ^ _NESTED, kind ^ _BYTE_ORDER, 0)
        )
        draft.attributes[at] = (kind, payload, length)


@_mutation
def _false_length(rng: random.Random, draft: Draft) -> None:
    if (at := _pick(rng, draft)) is not None:
        kind, payload, _ = draft.attributes[at]
        claimed = rng.choice(
            (0, 1, 3, 4, len(payload), len(payload) + 5, 0xFFFF, rng.randrange(64))
        )
        draft.attributes[at] = (kind, payload, claimed)


@_mutation
def _resize(rng: random.Random, draft: Draft) -> None:
    if (at := _pick(rng, draft)) is not None:
        kind, payload, length = draft.attributes[at]
        size = rng.choice((0, 1, 2, 3, 5, 7, 9, 255, 4096, 0xFFFB))
        filler = rng.choice((b"\0", b"\xff", b"x"))
        draft.attributes[at] = (kind, payload[:size].ljust(size, filler), length)


@_mutation
def _garble(rng: random.Random, draft: Draft) -> None:
    if (at := _pick(rng, draft)) is not None:
        kind, payload, length = draft.attributes[at]
        noise = bytearray(payload or b"\0")
        for _ in range(rng.choice((1, 1, 4, 16))):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        draft.attributes[at] = (kind, bytes(noise), length)


@_mutation
def _nest_garbage(rng: random.Random, draft: Draft) -> None:
    depth, inner = rng.choice((1, 2, 8, 100)), rng.randbytes(rng.randrange(24))
    for _ in range(depth):
        inner = attribute(rng.randrange(12) | rng.choice((0, _NESTED)), inner)
    kind = rng.choice([one[0] for one in draft.attributes] or [8])
    draft.attributes.append((kind | _NESTED, inner, None))


@_mutation
def _add_stranger(rng: random.Random, draft: Draft) -> None:
    payload = rng.randbytes(rng.choice((0, 1, 4, 8, 33)))
    draft.attributes.append((rng.randrange(rng.choice((40, 65536))), payload, None))


@_mutation
def _shuffle(rng: random.Random, draft: Draft) -> None:
    rng.shuffle(draft.attributes)


@_mutation
def _other_command(rng: random.Random, draft: Draft) -> None:
    draft.command = rng.randrange(rng.choice((16, 256)))


@_mutation
def _other_version(rng: random.Random, draft: Draft) -> None:
    draft.version, draft.reserved = rng.randrange(256), rng.choice((0, 1, 0xFFFF))


@_mutation
def _other_flags(rng: random.Random, draft: Draft) -> None:
    draft.flags = rng.choice(
        (0, REQUEST | _DUMP, REQUEST | _ACK, REQUEST | 0x100, rng.randrange(65536))
    )


@_mutation
def _other_kind(rng: random.Random, draft: Draft) -> None:
    draft.kind = rng.choice((0, 1, 2, 3, 4, 15))  # control messages: no other family's


@_mutation
def _false_total(rng: random.Random, draft: Draft) -> None:
    draft.length = rng.choice((0, 15, 16, 17, 19, 20, 21, 24, 4096, 2**31, 2**32 - 1))


@_mutation
def _tail(rng: random.Random, draft: Draft) -> None:
    draft.tail = rng.randbytes(rng.choice((1, 2, 3, 4, 5, 8, 64, 5000)))


@_mutation
def _only_noise(rng: random.Random, draft: Draft) -> None:
    draft.attributes.clear()
    draft.tail = rng.randbytes(rng.randrange(256))


class Messages:
    """All messages of a seed. ``live`` are numbers of runtimes that requests may name."""

    def __init__(self, family: Family, seed: int, live: Sequence[int] = ()) -> None:
        self._family, self._seed, self._live = family, seed, live
        self._names = {
            number: name.removeprefix(LunatikMessage.prefix)
            for number, (name, _) in enumerate(LunatikMessage.nla_map)
        }

    def command(self, index: int) -> int:
        """Return the command that message ``index`` was before it was mutated."""
        known = sorted(self._family.commands)
        return known[index % len(known)] if known else 0

    def __getitem__(self, index: int) -> bytes:
        """Return message ``index``; the same index always gives the same message."""
        rng = random.Random(f"{self._seed}/{index}")  # noqa: S311 - to be repeatable
        draft = self._well_formed(rng, self.command(index))
        # One in four stays as it is, so that mutants find something to disturb.
        for _ in range(rng.choice((0, 1, 1, 2, 3, 6, 0, 1))):
            rng.choice(_mutations)(rng, draft)
        return draft.pack(index & 0xFFFFFFFF)

    def _well_formed(self, rng: random.Random, command: int) -> Draft:
        dump = rng.random() < (0.9 if command in self._family.dumps else 0.1)
        draft = Draft(self._family.number, command, REQUEST | (_DUMP if dump else 0))
        draft.flags |= rng.choice((0, _ACK))
        for number, one in self._family.commands.get(command, {}).items():
            if rng.random() < 0.8:
                kind = number | (_NESTED if one.kind in _NESTED_TYPES else 0)
                draft.attributes.append((kind, self._payload(rng, number, one), None))
        return draft

    def _payload(self, rng: random.Random, number: int, one: Attribute) -> bytes:
        match self._names.get(number):
            case "ID" if self._live and rng.random() < 0.9:
                return struct.pack("=I", rng.choice(self._live))
            case "SOURCE":
                return rng.choice((*_SOURCES, rng.randbytes(rng.randrange(200))))
            case "NAME":
                return rng.choice((_NAMES[0], rng.choice(_NAMES)))
            case "NETNS_FD":
                return struct.pack("=i", rng.choice((0, 1, 2, 3, 4, 5, 99, -1, 2**31 - 1)))
            case "VALUES":
                return b"".join(
                    _lua_value(rng) for _ in range(rng.choice((0, 1, 2, 3, 64, 65)))
                )
        return _typed(rng, one)


def _typed(rng: random.Random, one: Attribute) -> bytes:
    """Return a payload that the attribute's policy allows, or nearly."""
    if one.kind == _FLAG:
        return b""
    if width := _INTEGERS.get(one.kind):
        near = (one.low - 1, one.low, one.low + 1, one.high, one.high + 1)
        value: int = rng.choice((*near, rng.getrandbits(64), 0, -1))
        return int(value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    if one.kind in _NESTED_TYPES:
        return attribute(rng.randrange(12), rng.randbytes(rng.randrange(12)))
    longest = min(one.longest, 0xF000)
    return rng.randbytes(rng.choice((0, 1, 8, min(100, longest)))) + b"\0"


def _lua_value(rng: random.Random) -> bytes:
    inner = rng.choice((
        attribute(1, b""),
        attribute(2, bytes([rng.choice((0, 1, 2, 255))])),
        attribute(3, struct.pack("=q", rng.choice((0, -1, 2**63 - 1, -(2**63), 7)))),
        attribute(4, rng.randbytes(rng.choice((0, 1, 10, 900)))),
        attribute(rng.randrange(8), rng.randbytes(rng.randrange(9))),
        attribute(4, b"x") + attribute(3, b"12345678") + attribute(2, b"\1"),
        b"",
    ))  # fmt: skip
    return attribute(rng.choice((9 | _NESTED, 9 | _NESTED, 9, 8)), inner)
