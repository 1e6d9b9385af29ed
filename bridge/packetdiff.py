"""Compare two packets field by field, as scapy names the fields.

    >>> diff(IP() / UDP(dport=53), IP() / UDP(dport=54))
    [FieldDiff(path='UDP.dport', sent=53, seen=54)]

Causes come first, consequences last: lengths follow what changed, and a checksum that
is right for the changed packet is no difference at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CHECKSUMS = frozenset({"chksum", "cksum"})
CONSEQUENCES = frozenset({"len", "plen", "ihl", "dataofs"}) | CHECKSUMS


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """One field that differs. A side that has no such field is None.

    ``path`` names layer and field (``UDP.dport``, ``DNS.qd[0].qname``); the second layer
    of a name is ``IP[1].ttl``.
    """

    path: str
    sent: Any
    seen: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.sent)} -> {_shown(self.seen)}"


def diff(
    sent: Any,
    seen: Any,
    *,
    ignore: Iterable[str] = (),
    within: Mapping[str, int] | None = None,
) -> list[FieldDiff]:
    """List the fields in which two scapy packets differ.

    ``ignore`` names fields to leave out, with shell wildcards (``IP.ttl``, ``*.chksum``).
    ``within`` says by how much a number may differ (``{"IP.ttl": 1}``).
    """
    patterns = list(ignore)
    tolerances = dict(within or {})
    left, right = fields(sent), fields(alike(sent, seen))
    wrong = wrong_checksums(seen)
    found = []
    for path in dict.fromkeys([*left, *right]):
        before, after = left.get(path), right.get(path)
        if before == after or any(fnmatchcase(path, pattern) for pattern in patterns):
            continue
        if path in left and path in right and _follows(path, wrong):
            continue
        if _is_close(before, after, tolerances.get(path)):
            continue
        found.append(FieldDiff(path, before, after))
    return sorted(found, key=lambda one: _field(one.path) in CONSEQUENCES)


def fields(packet: Any) -> dict[str, Any]:
    """Flatten a packet: path of each field to its value, in wire order."""
    flat: dict[str, Any] = {}
    names: dict[str, int] = {}
    for layer in _layers(packet):
        name = type(layer).__name__
        occurrence = names.get(name, 0)
        names[name] = occurrence + 1
        _flatten(layer, f"{name}[{occurrence}]" if occurrence else name, flat)
    return flat


def alike(sent: Any, seen: Any) -> Any:
    """Read ``seen`` with the layers of ``sent``, where scapy chose others.

    Scapy guesses a payload's type by port; a changed port must not make every field of
    the payload look changed.
    """
    copy = seen.copy()
    ours, theirs = sent, copy
    while ours.payload and theirs.payload:
        if type(ours.payload) is not type(theirs.payload):
            raw = bytes(theirs.payload)
            theirs.remove_payload()
            theirs.add_payload(type(ours.payload)(raw))
        ours, theirs = ours.payload, theirs.payload
    return copy


def wrong_checksums(packet: Any) -> frozenset[str]:
    """The paths of checksum fields whose value is wrong for the packet as it is."""
    right = packet.copy()
    for layer in _layers(right):
        for name in CHECKSUMS & set(layer.fields):
            layer.delfieldval(name)
    right = type(packet)(bytes(right))
    computed, carried = fields(right), fields(packet)
    return frozenset(
        path
        for path, value in carried.items()
        if _field(path) in CHECKSUMS and computed.get(path) != value
    )


def _follows(path: str, wrong: frozenset[str]) -> bool:
    return _field(path) in CHECKSUMS and path not in wrong


def _field(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _is_close(before: Any, after: Any, tolerance: int | None) -> bool:
    if tolerance is None or not (isinstance(before, int) and isinstance(after, int)):
        return False
    return abs(before - after) <= tolerance


def _layers(packet: Any) -> Iterator[Any]:
    while packet:
        yield packet
        packet = packet.payload


def _flatten(layer: Any, prefix: str, flat: dict[str, Any]) -> None:
    for field in layer.fields_desc:
        value = layer.getfieldval(field.name)
        _flatten_value(value, f"{prefix}.{field.name}", flat)


def _flatten_value(value: Any, path: str, flat: dict[str, Any]) -> None:
    if hasattr(value, "fields_desc"):
        _flatten(value, path, flat)
    elif isinstance(value, list) and any(hasattr(item, "fields_desc") for item in value):
        for number, item in enumerate(value):
            _flatten_value(item, f"{path}[{number}]", flat)
    else:
        flat[path] = value


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, bytes):
        text = value[:32].decode("ascii", "backslashreplace")
        return repr(text) + (f"... ({len(value)} bytes)" if len(value) > 32 else "")
    return str(value)
