"""Budgets and limits: a looping or greedy script costs its packet, not the machine."""

from __future__ import annotations

import pytest

from bridge.errors import LuaError
from bridge.lunatik import Lunatik

pytestmark = pytest.mark.kernel

ENDLESS = {
    "loop": "while true do end",
    "loop in pcall": "while true do pcall(function() while true do end end) end",
    "loop in coroutine": "coroutine.wrap(function() while true do end end)()",
    "loop in close": "local c <close> = setmetatable({}, {__close = function() while true do end end})",
    "loop in metamethod": "local t = setmetatable({}, {__index = function() while true do end end}) t = t.x",
    "loop in sort": "table.sort({3, 2, 1}, function() while true do end end)",
    "loop in gsub": "string.gsub('a', 'a', function() while true do end end)",
    "loop in message handler": "xpcall(error, function() while true do end end)",
    "loop in close of a coroutine": "coroutine.wrap(function() local c <close> = setmetatable({}, {__close = function() while true do end end}) while true do end end)()",
    "loop in handler of a coroutine": "coroutine.wrap(function() xpcall(function() while true do end end, function() while true do end end) end)()",
    "loop in iterator": "for _ in function() return 1 end do end",
    "loop in old coroutine": "if not co then co = coroutine.create(function() coroutine.yield() while true do end end) coroutine.resume(co) end coroutine.resume(co) while true do end",
}
GREEDY = {
    "table": "local t = {} while true do t[#t + 1] = {} end",
    "string": "local s = 'x' while true do s = s .. s end",
    "rep": "return ('x'):rep(1 << 40)",
    "concat": "local t = {} for i = 1, 500 do t[i] = ('x'):rep(4000) end return table.concat(t)",
    "coroutines": "local t = {} while true do t[#t + 1] = coroutine.create(print) end",
    "format": "return ('%q'):format(('\\0'):rep(400000))",
    "stack": "return table.unpack({}, 1, 1000000)",
}
RECURSIVE = {
    "lua": "local function f() return 1 + f() end f()",
    "pcall": "local function f() pcall(f) end f()",
    "pcall rethrown": "local function f() assert(pcall(f)) end f()",
    "gsub": "local function f() string.gsub('a', 'a', f) end f()",
    "sort": "local function f() table.sort({2, 1}, f) end f()",
    "coroutine": "local function f() coroutine.wrap(f)() end f()",
    "tostring": "local t = setmetatable({}, {__tostring = function(t) return tostring(t) end}) tostring(t)",
    "index": "local t = setmetatable({}, {}) getmetatable(t).__index = function(t, k) return t[k] end t = t.x",
    "concat": "local t = setmetatable({}, {__concat = function(a, b) return a .. b end}) t = t .. t",
    "handler": "local function h(e) return h(e) .. 'x' end xpcall(error, h)",
    "handler calls xpcall": "local function h() xpcall(error, h) error() end xpcall(error, h)",
    "load": "local function f() load(function() f() end) load('f()', 'f', 't', {f = f})() end f()",
    "parentheses": "assert(load('return ' .. ('('):rep(5000) .. '1' .. (')'):rep(5000)))",
    "blocks": "assert(load(('do '):rep(5000) .. ('end '):rep(5000)))",
    "tables": "assert(load('return ' .. ('{'):rep(5000) .. ('}'):rep(5000)))",
    "functions": "assert(load(('return function() '):rep(2000) .. ('end '):rep(2000)))",
    "pattern": "string.find(('a'):rep(20000), ('a?'):rep(20000) .. ('a'):rep(20000))",
    "balance": "string.find(('('):rep(60), '(.-)%b()(.-)%b()(.-)%b()')",
    "captures": "string.find(('a'):rep(5000), ('(a)'):rep(40))",
    "mixed": "local n = 0 local function f() n = n + 1 local k = n % 4 if k == 0 then pcall(f) elseif k == 1 then coroutine.wrap(f)() elseif k == 2 then string.gsub('a', '.', f) else table.sort({2, 1}, f) end end f()",
}


def _cases(*tables: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "source", [pytest.param(source, id=name) for table in tables for name, source in table.items()]
    )


@pytest.fixture(scope="module")
def small():
    """The module with a body budget that is used up soon under emulation."""
    with Lunatik.load(body_budget=1_000_000) as lunatik:
        yield lunatik


@_cases(ENDLESS)
@pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])
def test_an_endless_body_ends_with_an_error(small, source, sleep):
    with pytest.raises(LuaError, match=r"instruction budget exceeded|error in error handling"):
        small.runtime("endless", source=source, sleep=sleep)


@_cases(GREEDY)
@pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])
def test_a_greedy_body_ends_with_an_error(small, source, sleep):
    pattern = "not enough memory|too large|too many|overflow|budget exceeded|invalid conversion"
    with pytest.raises(LuaError, match=pattern):
        small.runtime("greedy", source=source, sleep=sleep)


@_cases(RECURSIVE)
def test_a_recursive_body_stops_inside_the_kernel_stack(small, source):
    try:
        small.runtime("recursive", source=source).stop()
    except LuaError as error:
        assert error.message  # noqa: PT017 - either end is right, if the kernel lives


@_cases(ENDLESS, GREEDY, RECURSIVE)
def test_an_atomic_resume_is_bounded(small, source):
    runtime = small.runtime("resumed", source=f"coroutine.yield() {source}", sleep=False)
    with runtime:
        try:
            runtime.resume()
        except LuaError as error:
            assert error.message  # noqa: PT017 - either end is right, if the kernel lives


class TestCallback:
    """The same scripts in softirq, on top of the network stack."""

    @_cases(ENDLESS, GREEDY)
    def test_an_endless_or_greedy_callback_costs_its_packet(
        self, small, router, traffic, source
    ):
        body = f"if skb:u8(9) ~= 1 then return 1 end {source}"
        with small.runtime(
            "hostile", source=_hook(body, "drop"), sleep=False, netns=router["router"].netns
        ) as runtime:
            assert traffic.ping("client", "server").received == 0
            info = runtime.info()
            assert info.errors == info.calls == 1
            assert info.last_error
        assert traffic.ping("client", "server").received == 1

    @_cases(RECURSIVE)
    def test_a_recursive_callback_stops_inside_the_kernel_stack(
        self, small, router, traffic, source
    ):
        body = f"local function work() {source} end pcall(work) return 1"
        with small.runtime(
            "recursive", source=_hook(body, "accept"), sleep=False, netns=router["router"].netns
        ) as runtime:
            assert traffic.ping("client", "server").received == 1
            assert runtime.info().calls >= 2

    def test_a_callback_below_its_budget_never_fails(self, small, router, traffic):
        # About 60,000 of the 100,000 instructions: some milliseconds under emulation.
        body = "for _ = 1, 20000 do skb = skb end return 1"
        with small.runtime(
            "busy", source=_hook(body, "drop"), sleep=False, netns=router["router"].netns
        ) as runtime:
            assert traffic.ping("client", "server", count=5).received == 5
            assert runtime.info().errors == 0


def _hook(body: str, on_error: str) -> str:
    return f"""
    local nf = require "netfilter"
    nf.register{{pf = nf.family.IPV4, hooknum = nf.inet_hooks.FORWARD, priority = 0,
                onerror = "{on_error}", hook = function(skb) {body} end}}
    """
