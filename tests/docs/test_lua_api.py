"""docs/lua-api.md against what scripts can reach: in a kernel, and in the sources.

A runtime in the kernel lists its globals and its libraries by walking their tables.
Methods of the kernel's objects cannot be walked, because their metatables are hidden:
their names come from the module's sources, and each is looked up in a live object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from bridge.module import LUA_ROOT, PROJECT, SOURCES

kernel = pytest.mark.kernel
both_kinds = pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])

PAGE = PROJECT / "docs" / "lua-api.md"

# What each table of functions in the module's sources is called in Lua.
REGISTERED = {
    "byteorder_functions": "byteorder.",
    "completion_functions": "completion.",
    "completion_methods": "completion:",
    "counter_functions": "counter.",
    "counter_methods": "counter:",
    "data_functions": "data.",
    "data_methods": "data:",
    "fifo_functions": "fifo.",
    "fifo_methods": "fifo:",
    "globals": "",
    "handle_methods": "handle:",
    "linux_functions": "linux.",
    "lunatik_functions": "lunatik.",
    "math_functions": "math.",
    "methods": "data:",
    "netfilter_functions": "netfilter.",
    "packet_methods": "skb:",
    "rcu_functions": "rcu.",
    "rcu_metamethods": "shared:",
    "runtime_metamethods": "runtime:",
    "runtime_methods": "runtime:",
}
LIBRARIES = "builtin"
# Metamethods that a script has no way to call, or sees as something else.
HIDDEN = {"__eq", "__gc", "__index", "__metatable", "__name"}
# How a script gets an object of a class, a sleepable one but for handles; packets come
# to callbacks.
OBJECTS = {
    "buckets": 'require("bucket").new{rate = 1, burst = 1}',
    "completion": 'require("completion").new()',
    "counter": 'require("counter").new()',
    "data": 'require("data").new(8)',
    "fifo": 'require("fifo").new(8)',
    "inbox": 'require("mailbox").inbox(8)',
    "handle": """require("netfilter").register{
      pf = 2, hooknum = 0, priority = 0, hook = function() return 1 end }""",
    "list": 'require("blocklist").new()',
    "layout": 'require("struct"){ {"field", "I2"} }',
    "outbox": 'require("mailbox").outbox(8)',
    "prefixes": 'require("cidr").new()',
    "runtime": 'lunatik.runtime("echo")',
    "shared": 'require("rcu").table()',
    "values": 'require("set").new()',
}

# ---- the page ---------------------------------------------------------------


def documented(page: str) -> set[str]:
    """The names the page documents: `a.b` for functions and constants, `a:b` for methods."""
    names: set[str] = set()
    heading = ""
    table = ""
    for line in page.splitlines():
        if found := re.match(r"^### `(.*)`$", line):
            heading = name_of(found[1])
            names.add(heading)
        if not line.startswith("|"):
            table = ""
        elif not table:
            table = line
        else:
            names |= _row(table, heading, line)
    return names | _aliases(page, names)


def _aliases(page: str, names: set[str]) -> set[str]:
    """Tables under other names, with what is in them."""
    part = page.partition("\n| alias | of |\n")[2].partition("\n\n")[0]
    found: set[str] = set()
    for alias, of in re.findall(r"^\| `([^`]+)` \| (?:`([^`]+)` )?\|$", part, re.M):
        inside = {name.removeprefix(of) for name in names if of and name.startswith(f"{of}.")}
        found |= {alias, *(alias + name for name in inside)}
    return found


def _row(table: str, heading: str, line: str) -> set[str]:
    """The names that a row documents, by the head of its table."""
    _, first, text, *_ = line.split("|")
    cells = re.findall(r"`([^`]+)`", first)
    if table == "| constant | |":
        return {f"{heading}.{cell}" for cell in cells}
    if found := re.match(r"\| (method|function) of (\w+) \|", table):
        mark = ":" if found[1] == "method" else "."
        return {found[2] + mark + cell for cell in cells}
    if table == "| name | here |" and not text.startswith(" absent"):
        return set(cells)
    return set()


def absent(page: str) -> set[str]:
    """The names of stock Lua that the page says are not there."""
    return set(re.findall(r"^\| `([\w.]+)` \| absent", page, re.M))


def name_of(signature: str) -> str:
    """The name in a heading; operators by their metamethods."""
    if signature.startswith("#"):
        return f"{signature[1:]}:__len"
    if found := re.fullmatch(r"local (\w+) <close>", signature):
        return f"{found[1]}:__close"
    if found := re.fullmatch(r"pairs\((\w+)\)", signature):
        return f"{found[1]}:__pairs"
    if found := re.fullmatch(r"(\w+)\[\w+\]( = \w+)?", signature):
        return f"{found[1]}:{'__newindex' if found[2] else '__index'}"
    found = re.match(r"[\w.:]+", signature)
    if not found:
        raise ValueError(f"no name in the heading {signature}")
    return found[0]


def sections(page: str) -> set[str]:
    return set(re.findall(r"^## ([\w.]+)$", page, re.M))


def policies(page: str) -> set[str]:
    """The names in the table of policies."""
    part = page.partition("\n## Policies\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", part, re.M))


# ---- the sources ------------------------------------------------------------


def registered(source: str) -> Iterator[tuple[str, list[str]]]:
    """Each table of functions in a C file: its name, and the names in it."""
    for found in re.finditer(r"\bluaL_Reg (\w+)\[\] = \{(.*?)\n\};", source, re.S):
        yield found[1], re.findall(r'\{ "([\w.]+)",', found[2])


def metamethods(source: str) -> set[str]:
    """The metamethods that a C file sets, without the hidden ones."""
    return set(re.findall(r'"(__\w+)"', source)) - HIDDEN


def c_files() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.c"))}


def kernel_libraries() -> set[str]:
    """The libraries of the kernel module."""
    (names,) = (
        names
        for source in c_files().values()
        for table, names in registered(source)
        if table == LIBRARIES
    )
    return set(names)


def in_c(names: set[str]) -> set[str]:
    """The methods among the names that are of classes of the kernel module."""
    return {name for name in names if f"{name.partition(':')[0]}:" in REGISTERED.values()}


def lua_files() -> tuple[set[str], set[str]]:
    """Lua files below the Lua root: libraries, which end by returning a table, and policies."""
    libraries = {
        path.stem
        for path in LUA_ROOT.glob("*.lua")
        if re.search(r"^return \w+\n\Z", path.read_text(), re.M)
    }
    return libraries, {path.stem for path in LUA_ROOT.glob("*.lua")} - libraries


def missing_and_surplus(page: set[str], code: set[str]) -> dict[str, set[str]]:
    """What is in one and not in the other; empty if they agree."""
    found = {"undocumented": code - page, "documented, but not there": page - code}
    return {what: names for what, names in found.items() if names}


def test_every_table_of_functions_in_the_sources_is_known_here():
    found = {table for source in c_files().values() for table, _ in registered(source)}
    assert found == {*REGISTERED, LIBRARIES}


def test_the_functions_of_the_kernel_module_are_documented():
    code = {
        REGISTERED[table] + name
        for source in c_files().values()
        for table, names in registered(source)
        if table != LIBRARIES
        for name in names
    }
    page = documented(PAGE.read_text())
    assert code - page == set()
    methods = {name for name in in_c(page) if ":__" not in name}
    assert methods - code == set()


def test_the_metamethods_of_the_kernel_module_are_documented():
    code: set[str] = set()
    for file, source in c_files().items():
        tables = {table: names for table, names in registered(source) if table != LIBRARIES}
        listed = {
            REGISTERED[table] + name
            for table, names in tables.items()
            for name in names
            if name.startswith("__")
        }
        code |= listed
        rest = metamethods(source) - {name.partition(":")[2] for name in listed}
        if rest:
            classes = {name for name in map(REGISTERED.get, tables) if name.endswith(":")}
            assert len(classes) == 1, f"{file}: whose metamethods are these?"
            code |= {f"{one}{name}" for one in classes for name in rest}
    page = {name for name in in_c(documented(PAGE.read_text())) if ":__" in name}
    assert missing_and_surplus(page, code) == {}


def test_the_fields_of_a_registration_are_documented():
    source = c_files()["libnetfilter.c"]
    known = re.search(r"known\[\] = \{(.*?)\};", source, re.S)
    heading, table = re.search(
        r"^### `netfilter\.register\{(.*?)\}`\n.*?^\| field \| \|\n\|[-|]+\n(.*?)\n\n",
        PAGE.read_text(),
        re.M | re.S,
    ).groups()
    fields = set(re.findall(r'"(\w+)"', known[1]))
    assert set(re.findall(r"(\w+) =", heading)) == fields
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == fields


def test_every_library_has_a_section_and_every_policy_a_row():
    page = PAGE.read_text()
    libraries, scripts = lua_files()
    assert policies(page) == scripts
    objects = {name.rstrip(":") for name in REGISTERED.values() if name.endswith(":")}
    parts = sections(page) - {"Policies"}
    assert missing_and_surplus(parts | objects, libraries | kernel_libraries() | objects) == {}


# ---- a kernel ---------------------------------------------------------------

WALK = """
local found, walked = {}, {}
local function walk(prefix, t)
  if walked[t] then return end
  walked[t] = true
  for key, value in pairs(t) do
    local name = prefix .. tostring(key)
    if prefix ~= "" or type(value) ~= "table" or value == _G then found[#found + 1] = name end
    if type(value) == "table" then walk(name .. ".", value) end
  end
end
for _, name in ipairs{%s} do
  local library = require(name)
  if type(library) ~= "table" then found[#found + 1] = name
  elseif _G[name] ~= library then walk(name .. ".", library) end
end
walk("", _G)
local names = table.concat(found, " ")
coroutine.yield()
return names
"""


@kernel
@both_kinds
def test_the_page_documents_what_a_runtime_has_and_nothing_else(script, sleep):
    names = sorted(kernel_libraries() | lua_files()[0])
    source = WALK % ", ".join(f'"{name}"' for name in names)
    code = set(script(source, sleep=sleep).resume().decode().split())
    page = {name for name in documented(PAGE.read_text()) if ":" not in name}
    assert missing_and_surplus(page, code) == {}


@kernel
def test_what_is_said_to_be_absent_is_absent(script):
    names = sorted(absent(PAGE.read_text()))
    assert len(names) > 20
    source = "coroutine.yield() local there = '' "
    for name in names:
        source += f"if {name} ~= nil then there = there .. ' {name}' end "
    assert script(source + "return there").resume() == b""


# What is wrong with the methods of an object, given the documented ones.
LOOK = """
  local wrong, known, hidden = "", {{ {known} }}, {{ {hidden} }}
  local function check(right, what, name)
    if not right then wrong = wrong .. " " .. what .. " " .. name end
  end
  local metatable = getmetatable(object)
  for name in pairs(known) do
    if name:sub(1, 2) ~= "__" then
      check(type(object[name]) == "function", "no", name)
    elseif type(metatable) == "table" then
      check(metatable[name], "no", name)
    end
  end
  if type(metatable) == "table" then
    for _, names in ipairs{{ metatable, metatable.__index }} do
      for name in pairs(names) do
        check(known[name] or hidden[name], "undocumented", name)
      end
    end
  end
"""


def look(names: set[str]) -> str:
    return LOOK.format(
        known=", ".join(f"{name} = true" for name in sorted(names)),
        hidden=", ".join(f"{name} = true" for name in sorted(HIDDEN)),
    )


def methods(class_: str) -> set[str]:
    names = (name.split(":") for name in documented(PAGE.read_text()) if ":" in name)
    return {method for one, method in names if one == class_}


def test_every_class_has_an_object_to_look_at():
    classes = {name.split(":")[0] for name in documented(PAGE.read_text()) if ":" in name}
    assert classes == {"skb", *OBJECTS}


@kernel
@pytest.mark.parametrize("class_", OBJECTS)
def test_the_documented_methods_are_those_of_a_live_object(script, class_):
    source = f"local object = {OBJECTS[class_]} {look(methods(class_))} coroutine.yield()"
    runtime = script(source + " return wrong", sleep=class_ != "handle")
    assert runtime.resume() == b""


@kernel
def test_the_documented_methods_are_those_of_a_packet(script, loopback):
    callback = f"local object = skb {look(methods('skb'))} result = wrong"
    source = f"{CALLBACK.format(callback)} coroutine.yield() return result"
    runtime = script(source, sleep=False)
    loopback()
    assert runtime.resume() == b""


@kernel
def test_packets_and_views_have_the_methods_of_data(script, loopback):
    names = ", ".join(f'"{name}"' for name in sorted(methods("data") - {"__len", "resize"}))
    callback = f"""
    local view = skb:data()
    result = ""
    for _, name in ipairs{{{names}}} do
      for _, object in ipairs{{skb, view}} do
        if type(object[name]) ~= "function" then result = result .. " no " .. name end
      end
    end
    assert(#view == #skb and view.resize == nil)
    """
    runtime = script(CALLBACK.format(callback) + "coroutine.yield() return result", sleep=False)
    loopback()
    assert runtime.resume() == b""


@kernel
def test_a_missing_and_an_undocumented_method_are_found(script):
    def wrong(object_: str, names: set[str]) -> set[str]:
        source = f"local object = {object_} {look(names)} coroutine.yield() return wrong"
        found = script(source).resume().decode()
        return set(re.findall(r"(?:no|undocumented) \w+", found))

    assert wrong(OBJECTS["data"], {"resize", "shrink"}) == {"no shrink"}
    thing = "setmetatable({}, { __index = { a = print, b = print }, __len = print })"
    assert wrong(thing, {"a", "c"}) == {"no c", "undocumented b", "undocumented __len"}
    assert wrong(thing, {"a", "b", "__len"}) == set()


CALLBACK = """
local netfilter = require "netfilter"
netfilter.register{{
  pf = netfilter.family.IPV4, hooknum = netfilter.inet_hooks.LOCAL_OUT, priority = 0,
  hook = function(skb) {} return netfilter.action.ACCEPT end,
}}
"""

# ---- the checks can fail ----------------------------------------------------


def test_an_undocumented_and_a_surplus_name_are_found():
    assert missing_and_surplus({"a.b", "a.c"}, {"a.b", "a.d"}) == {
        "undocumented": {"a.d"},
        "documented, but not there": {"a.c"},
    }
    assert missing_and_surplus({"a.b"}, {"a.b"}) == {}


def test_names_are_read_from_headings_and_tables():
    page = """
## part
### `part.f(a [, b])`
### `part.g{x =}`
### `thing:m(...)`
### `#thing`
### `local thing <close>`
### `part.numbers`

| constant | |
|---|---|
| `ONE` | 1 |

| name | here |
|---|---|
| `string.len` | stock |
| `io` | absent |

| field | |
|---|---|
| `hook` | no name |

### Fields

| method of thing | bits |
|---|---|
| `get` `set` | 8 |

| function of part | |
|---|---|
| `h` `i` | |

### `thing[key]`
### `thing[key] = value`
### `pairs(thing)`

| alias | of |
|---|---|
| `other.n` | `part.numbers` |
| `other.empty` | |

## Policies

| policy | what `resume` takes |
|---|---|
| `accept` | nothing |
"""
    assert documented(page) == {
        "part.f",
        "part.g",
        "part.h",
        "part.i",
        "thing:m",
        "thing:__len",
        "thing:__close",
        "thing:__index",
        "thing:__newindex",
        "thing:__pairs",
        "thing:get",
        "thing:set",
        "part.numbers",
        "part.numbers.ONE",
        "other.n",
        "other.n.ONE",
        "other.empty",
        "string.len",
    }
    assert absent(page) == {"io"}
    assert policies(page) == {"accept"}
    with pytest.raises(ValueError, match="no name"):
        name_of("(x)")


def test_names_are_read_from_the_sources():
    source = """
static const luaL_Reg thing_methods[] = {
	{ "len", thing_len },
	{ "put", thing_put },
	{ NULL, NULL }
};
	lua_setfield(L, -2, "__gc");
	lua_setfield(L, -2, "__len");
"""
    assert list(registered(source)) == [("thing_methods", ["len", "put"])]
    assert metamethods(source) == {"__len"}
