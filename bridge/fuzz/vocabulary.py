"""The names a script can use, read from the module's sources and the Lua libraries.

So a library or function that is added is tried without anything being said here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bridge.module import LUA_ROOT, SOURCES

# What stock Lua brings, as far as the kernel has it; see library.c.
STOCK = {
    "string": "byte char find format gmatch gsub len lower match pack packsize rep reverse sub "
    "unpack upper",
    "table": "concat insert move pack remove sort unpack",
    "utf8": "char codepoint codes len offset",
    "coroutine": "close create isyieldable resume running status wrap yield",
    "math": "abs max min random tointeger type ult",
    "_G": "assert collectgarbage error getmetatable ipairs load next pairs pcall print "
    "rawequal rawget rawlen rawset require select setmetatable tonumber tostring type xpcall",
}
METAMETHODS = (
    "add", "sub", "mul", "div", "mod", "pow", "unm", "idiv", "band", "bor", "bxor", "shl",
    "shr", "bnot", "concat", "len", "eq", "lt", "le", "index", "newindex", "call", "close",
    "gc", "mode", "name", "tostring", "metatable", "pairs",
)  # fmt: skip

_OPEN = re.compile(r"\nint lunatik_open_(\w+)\(lua_State \*L\)\n\{(.*?)\n\}", re.S)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Functions and constants with their libraries, methods of any object, scripts by name."""

    functions: tuple[str, ...]
    constants: tuple[str, ...]
    methods: tuple[str, ...]
    libraries: tuple[str, ...]
    scripts: dict[str, str]

    @classmethod
    def read(cls, kmod: Path = SOURCES, lua: Path = LUA_ROOT) -> Vocabulary:
        """Read the sources below ``kmod`` and the scripts below ``lua``."""
        texts = {path.stem: path.read_text() for path in sorted(kmod.glob("*.c"))}
        scripts = {path.stem: path.read_text() for path in sorted(lua.glob("*.lua"))}
        libraries = tuple(re.findall(r'\{ "(\w+)", lunatik_open_\w+ \}', texts["library"]))
        functions = [f"{lib}.{name}" for lib, names in STOCK.items() for name in names.split()]
        methods = set(STOCK["string"].split())
        for table, body in _tables(texts.values(), "luaL_Reg"):
            names = re.findall(r'\{ "(\w+)"', body)
            owner = table.removesuffix("_functions")
            if owner in libraries:
                functions += [f"{owner}.{name}" for name in names]
            elif table not in ("builtin", "globals"):
                methods |= set(names)
        for name, text in scripts.items():
            functions += [
                f"{name}.{one}" for one in re.findall(rf"function {name}[.:](\w+)", text)
            ]
        return cls(
            functions=tuple(functions),
            constants=tuple(_constants(texts.values(), libraries)),
            methods=tuple(sorted(methods)),
            libraries=(
                *libraries,
                *(name for name in scripts if _is_library(name, scripts[name])),
            ),
            scripts=scripts,
        )

    def constructors(self) -> tuple[str, ...]:
        """Return the functions that make the objects of libraries."""
        return tuple(one for one in self.functions if one.split(".")[1] in ("new", "table"))


def _is_library(name: str, text: str) -> bool:
    return re.search(rf"^return {name}$", text, re.M) is not None


def _tables(texts: Iterable[str], kind: str) -> list[tuple[str, str]]:
    pattern = rf"static const (?:struct )?{kind} (\w+)\[\] = \{{(.*?)\n\}};"
    return [found for text in texts for found in re.findall(pattern, text, re.S)]


def _constants(texts: Iterable[str], libraries: Iterable[str]) -> list[str]:
    """Return library.field.NAME of every table of constants that a library opens with."""
    found = []
    for text in texts:
        tables = dict(_tables([text], "lunatik_constant"))
        for library, body in _OPEN.findall(text):
            for field, table in re.findall(r'\(L, "(\w+)",\s*(\w+)', body):
                if library in libraries and table in tables:
                    names = re.findall(r'\{ "(\w+)"', tables[table])
                    found += [f"{library}.{field}.{name}" for name in names]
    return found
