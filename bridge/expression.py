"""Packets as scapy writes them, read without running anything: IP()/UDP(dport=53)/b"x".

Layers are called by their names, with numbers, strings, bytes, lists and layers as their
fields. dns_question("a.example") stands for what bridge.traffic makes of it.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from typing import Any

from bridge.errors import UsageError

# Where layers are looked up; more of scapy would take seconds more to import.
_MODULES = (
    "scapy.packet",
    "scapy.layers.inet",
    "scapy.layers.inet6",
    "scapy.layers.dns",
    "scapy.layers.dhcp",
    "scapy.layers.ntp",
    "scapy.layers.sctp",
)
_LARGEST = 65_535
_CURE = "write it as scapy does, such as: 'IP()/UDP(dport=53)/b\"hello\"'"


def parse(text: str) -> Any:
    """Return the scapy packet that a text describes, beginning with IP or IPv6.

    Raises UsageError for what is none, or stands for several.
    """
    try:
        packet = _value(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise _wrong(text, f"{error.msg} at {error.offset}") from error
    except ValueError as error:
        raise _wrong(text, str(error)) from error
    if type(packet).__name__ not in {"IP", "IPv6"}:
        raise _wrong(text, "a packet begins with IP() or IPv6(); the link is filled in")
    _require_one(text, packet)
    return packet


def _require_one(text: str, packet: Any) -> None:
    try:
        several = sum(1 for _ in packet)
        size = len(bytes(packet))
    except Exception as error:  # scapy and struct raise many kinds for a field's value
        raise _wrong(text, f"a field has a value that it cannot have: {error}") from error
    if several != 1:
        raise _wrong(text, f"it stands for {several} packets, and one is sent")
    if size > _LARGEST:
        raise _wrong(text, f"it has {size:,} bytes")


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(f"{text!r} is no packet: {why}", cure=_CURE)


def _value(node: ast.expr) -> Any:
    """Return what a node stands for; raises ValueError for what is not known here."""
    match node:
        case ast.List(elts=items):
            return [_value(one) for one in items]
        case ast.Tuple(elts=items):
            return tuple(_value(one) for one in items)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _stacked(_value(left), _value(right))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _repeated(_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            return _called(name, arguments, keywords)
    return _constant(node)


def _constant(node: ast.expr) -> int | str | bytes | None:
    match node:
        case ast.Constant(value=int() | str() | bytes() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as number)):
            return -number
    raise ValueError(f"{ast.unparse(node)} is no layer and no value")


def _stacked(left: Any, right: Any) -> Any:
    if not hasattr(left, "fields_desc") or isinstance(right, int | list | tuple | None):
        raise ValueError("what / puts together are layers, and at the end text or bytes")
    return left / right


def _repeated(text: Any, times: Any) -> Any:
    if not isinstance(text, str | bytes) or not isinstance(times, int):
        raise ValueError("what * repeats is text or bytes")  # noqa: TRY004 (one kind here)
    if len(text) * times > _LARGEST:
        raise ValueError(f"{len(text) * times:,} bytes are more than a packet has")
    return text * times


def _called(name: str, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Any:
    layer = _layer(name)
    if any(one.arg is None for one in keywords):
        raise ValueError("fields are given by name, as in UDP(dport=53)")
    fields = {str(one.arg): _value(one.value) for one in keywords}
    try:
        return layer(*(_value(one) for one in arguments), **fields)
    except AttributeError as error:
        raise ValueError(f"{name} has no field {error.args[0]}") from error
    except TypeError as error:
        raise ValueError(str(error)) from error


def _layer(name: str) -> Callable[..., Any]:
    from scapy.packet import Packet  # noqa: PLC0415 (slow to import)

    if name == "dns_question":
        from bridge.traffic import dns_question  # noqa: PLC0415

        return dns_question
    for module in _MODULES:
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, Packet):
            return found
    raise ValueError(f"there is no layer {name}")
