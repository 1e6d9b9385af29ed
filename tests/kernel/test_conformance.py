"""Promises of the module lunatik's reference page that no other file tests.

docs/conformance.md says which statement each test stands for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bridge.errors import LuaError
from bridge.lunatik import Lunatik, Runtime, State
from bridge.traffic import Verdict

pytestmark = pytest.mark.kernel

both_kinds = pytest.mark.parametrize("sleep", [True, False], ids=["sleepable", "atomic"])
PARAMETERS = Path("/sys/module/lunatik/parameters")


@pytest.fixture
def rooted(tmp_path) -> Iterator[Callable[..., Lunatik]]:
    """The module with the scripts given below a Lua root of the test's own."""
    loaded: list[Lunatik] = []

    def load(**scripts: str) -> Lunatik:
        for name, text in scripts.items():
            (tmp_path / name).with_suffix(".lua").write_text(text)
        loaded.append(Lunatik.load(root=tmp_path))
        return loaded[0]

    yield load
    for lunatik in loaded:
        lunatik.close()


def run(lunatik: Lunatik, body: str) -> object:
    """What a sleepable script returns when it is resumed once."""
    with lunatik.runtime("script", source="coroutine.yield() " + body) as runtime:
        return runtime.resume()


# ---- the module -------------------------------------------------------------


@both_kinds
def test_the_global_table_lunatik_is_there_and_is_the_library(script, sleep):
    runtime = script(
        """
        local library = require "lunatik"
        coroutine.yield()
        return type(lunatik), lunatik == library, type(lunatik.runtime)
        """,
        sleep=sleep,
    )
    assert runtime.resume() == (b"table", True, b"function")


@both_kinds
def test_runtimes_share_no_globals_tables_or_libraries(lunatik, script, sleep):
    change = """
    shared = 1 string.shared = 2 lunatik.shared = 3
    getmetatable("").shared = 4 _G[1] = 5
    coroutine.yield()
    """
    look = """
    coroutine.yield()
    return shared, string.shared, lunatik.shared, getmetatable("").shared, _G[1]
    """
    changed = script(change, sleep=sleep)
    assert script(look, sleep=sleep).resume() == (None,) * 5
    assert changed.info().state is State.YIELDED


def test_the_scripts_of_a_creator_and_its_creation_share_no_globals(rooted):
    lunatik = rooted(looks="coroutine.yield(tostring(mark)) mark = 'child'")
    body = """
    mark = "parent"
    local rt = lunatik.runtime("looks")
    rt:resume()
    return mark
    """
    assert run(lunatik, body) == b"parent"


@both_kinds
def test_runtimes_live_and_die_independently(script, sleep):
    count = "local n = 0 while true do n = n + 1 coroutine.yield(n) end"
    one, two = script(count, sleep=sleep), script(count, sleep=sleep)
    failing = script("coroutine.yield() error('on purpose')", sleep=sleep)
    assert (one.resume(), one.resume(), two.resume()) == (2, 3, 2)
    with pytest.raises(LuaError):
        failing.resume()
    one.stop()
    assert two.resume() == 3


# ---- lunatik._ENV -----------------------------------------------------------


@pytest.mark.parametrize("reader", [True, False], ids=["sleepable reads", "atomic reads"])
@pytest.mark.parametrize("writer", [True, False], ids=["sleepable writes", "atomic writes"])
def test_the_environment_is_one_for_all_runtimes(script, writer, reader):
    look = """
    coroutine.yield()
    while true do
      local env = lunatik._ENV
      coroutine.yield(env.text, env.number, env.truth, env[1])
    end
    """
    reads = script(look, sleep=reader)
    assert reads.resume() == (None,) * 4
    writes = script(
        """
        local env = lunatik._ENV
        env.text, env.number, env.truth, env[1] = "a\\0b", -1, true, 2
        coroutine.yield()
        for key in pairs(env) do env[key] = nil end
        """,
        sleep=writer,
    )
    assert reads.resume() == (b"a\0b", -1, True, 2)
    writes.resume()
    assert reads.resume() == (None,) * 4


def test_the_environment_is_read_and_written_in_callbacks(policy, script, traffic):
    from scapy.layers.inet import IP, UDP

    policy(
        """
        local env = lunatik._ENV
        if skb:u8(0) >> 4 == 4 and skb:u8(9) == 17 then env.seen = (env.seen or 0) + 1 end
        return env.verdict
        """
    )
    for verdict, seen in ((1, Verdict.ACCEPTED), (0, Verdict.DROPPED)):
        script(f"lunatik._ENV.verdict = {verdict}")
        (outcome,) = traffic.send([IP() / UDP(dport=9)])
        assert outcome.verdict is seen
    taken = """
    coroutine.yield()
    local env = lunatik._ENV
    local seen = env.seen
    env.seen, env.verdict = nil, nil
    return seen
    """
    assert script(taken).resume() == 2


def test_the_environment_outlives_the_runtimes_that_use_it(lunatik):
    lunatik.runtime("writer", source="lunatik._ENV.left = 'behind'").stop()
    assert run(lunatik, "return lunatik._ENV.left") == b"behind"
    lunatik.runtime("cleaner", source="lunatik._ENV.left = nil").stop()


@both_kinds
def test_tables_and_other_objects_are_shared_through_the_environment(script, sleep):
    writes = script(
        """
        local rcu, data = require "rcu", require "data"
        local inner, bytes = rcu.table(), data.new(2)
        lunatik._ENV.table, lunatik._ENV.bytes = inner, bytes
        inner.bytes = bytes
        coroutine.yield()
        inner.word = "written later"
        bytes:setuint16be(0, 0x102)
        coroutine.yield()
        local found = bytes:getuint8(0)
        lunatik._ENV.table, lunatik._ENV.bytes = nil, nil
        return found
        """,
        sleep=sleep,
    )
    reads = script(
        """
        local inner, bytes = lunatik._ENV.table, lunatik._ENV.bytes
        coroutine.yield()
        local low = bytes:getuint8(1)
        bytes:setuint8(0, 9)
        return inner.word, low, inner.bytes == bytes
        """
    )
    writes.resume()
    assert reads.resume() == (b"written later", 2, True)
    assert writes.resume() == 9


# ---- lunatik.runtime(script [, sleep]) --------------------------------------


def test_runtime_returns_a_userdata_with_the_methods_resume_and_stop(lunatik):
    body = """
    local rt <close> = lunatik.runtime("echo")
    return type(rt), type(rt.resume), type(rt.stop), type(getmetatable(rt))
    """
    assert run(lunatik, body) == (b"userdata", b"function", b"function", b"string")


def test_runtime_runs_the_script_before_it_returns(rooted):
    lunatik = rooted(fails="error('it ran')", yields="coroutine.yield() return 'first'")
    body = """
    local ok, message = pcall(lunatik.runtime, "fails")
    local rt <close> = lunatik.runtime("yields")
    return ok, message, rt:resume()
    """
    assert run(lunatik, body) == (False, b"fails.lua:1: it ran", b"first")


def test_the_script_is_looked_up_as_name_lua_in_the_lua_root(rooted):
    lunatik = rooted(myscript="coroutine.yield() return 'mine'")
    assert run(lunatik, "return lunatik.runtime('myscript'):resume()") == b"mine"


@pytest.mark.parametrize("argument", ["", "nil", "{}", "true", "print"])
def test_a_script_that_is_no_string_is_refused(lunatik, argument):
    with pytest.raises(LuaError, match=r"bad argument #1 to '(lunatik\.)?runtime'"):
        run(lunatik, f"lunatik.runtime({argument})")


@pytest.mark.parametrize(
    ("argument", "sleep"),
    [("", True), (", nil", True), (", true", True), (", false", False)],
    ids=["default", "nil", "true", "false"],
)
def test_sleep_chooses_the_kind_and_is_true_by_default(lunatik, script, argument, sleep):
    creator = script(f"keep = lunatik.runtime('echo'{argument}) coroutine.yield()")
    (child,) = (one for one in lunatik.runtimes() if one.id != creator.id)
    assert (child.name, child.sleep) == ("echo", sleep)


def test_a_sleepable_runtime_may_do_what_blocks(rooted):
    """It opens files, creates runtimes and waits for one with a hook to be gone."""
    lunatik = rooted(
        late="return 'read now'",
        hooked="""
        local netfilter = require "netfilter"
        netfilter.register{
          pf = netfilter.family.IPV4, hooknum = 0, priority = 0,
          hook = function() return netfilter.action.ACCEPT end,
        }
        """,
    )
    body = """
    local text = require "late"
    local rt = lunatik.runtime("hooked", false)
    rt:stop()
    return text
    """
    assert run(lunatik, body) == b"read now"


def test_a_non_sleepable_runtime_may_not_do_what_blocks(rooted):
    lunatik = rooted(late="return 1")
    source = """
    coroutine.yield()
    local ok, required = pcall(require, "late")
    local created, message = pcall(lunatik.runtime, "late")
    return ok, required, created, message
    """
    with lunatik.runtime("script", source=source, sleep=False) as runtime:
        ok, required, created, message = runtime.resume()
    assert (ok, created) == (False, False)
    assert b"loads its libraries while its script's body first runs" in required
    assert b"creating a runtime sleeps" in message


def test_hooks_are_for_non_sleepable_runtimes_alone(rooted):
    lunatik = rooted(
        hooked="""
        require("netfilter").register{pf = 2, hooknum = 0, priority = 0, hook = print}
        """
    )
    body = """
    local wrong, message = pcall(lunatik.runtime, "hooked", true)
    local right <close> = lunatik.runtime("hooked", false)
    return wrong, message, type(right)
    """
    wrong, message, right = run(lunatik, body)
    assert (wrong, right) == (False, b"userdata")
    assert b"this runtime is sleepable" in message


@both_kinds
def test_runtime_raises_when_there_is_no_memory_for_a_state(lunatik, script, sleep):
    creator = script(
        """
        local kind = coroutine.yield()
        local ok, message = pcall(lunatik.runtime, "echo", kind)
        coroutine.yield(ok, message)
        return lunatik.runtime("echo", kind):resume("memory again")
        """
    )
    limit = PARAMETERS / "memory_limit"
    before = limit.read_text()
    limit.write_text("1000")
    try:
        ok, message = creator.resume(sleep)
    finally:
        limit.write_text(before)
    assert ok is False
    assert b"not enough memory for a Lua state (limit 1000 bytes)" in message
    assert creator.resume() == b"memory again"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, b"script 'given' not found: no file "),
        ("local x = = 1", b"given.lua:1: unexpected symbol near '='"),
        ("\x1bLua", b"attempt to load a binary chunk"),
        ("error('on purpose')", b"given.lua:1: on purpose"),
        ("local x = nil + 1", b"given.lua:1: attempt to perform arithmetic on a nil value"),
    ],
    ids=["missing", "syntax", "bytecode", "error", "fault"],
)
@both_kinds
def test_runtime_raises_when_the_script_cannot_be_loaded_or_fails(rooted, text, message, sleep):
    lunatik = rooted(**({} if text is None else {"given": text}))
    body = f"return pcall(lunatik.runtime, 'given', {str(sleep).lower()})"
    ok, raised = run(lunatik, body)
    assert ok is False
    assert message in raised
    assert lunatik.info().runtimes == 0


# ---- runtime:resume(...) ----------------------------------------------------


@both_kinds
def test_resume_goes_on_where_the_script_yielded(script, sleep):
    runtime = script(
        """
        local trail = ""
        local function deeper(n)
          trail = trail .. "<" .. n
          if n > 0 then deeper(n - 1) end
          pcall(coroutine.yield, n)
          trail = trail .. ">" .. n
        end
        deeper(2)
        return trail
        """,
        sleep=sleep,
    )
    assert [runtime.resume() for _ in range(3)] == [1, 2, b"<2<1<0>0>1>2"]


def test_resume_gives_what_coroutine_resume_gives(rooted):
    text = """
    local function report(...) return select("#", ...), ... end
    local first = table.pack(report(coroutine.yield()))
    local second = table.pack(report(coroutine.yield(table.unpack(first, 1, first.n))))
    if second[2] == "fail" then error("as asked", 0) end
    return "over", table.unpack(second, 1, second.n)
    """
    lunatik = rooted(steps=text)
    body = f"""
    local arguments = {{ {{}}, {{nil}}, {{1, nil, "x", nil}}, {{false, "\\0"}}, {{"fail"}} }}
    arguments[2].n = 1
    local function same(one, two)
      assert(one.n == two.n)
      for i = 1, one.n do assert(one[i] == two[i]) end
    end
    for _, second in ipairs(arguments) do
      for _, first in ipairs(arguments) do
        local thread = coroutine.create(load({text!r}))
        coroutine.resume(thread)
        local rt <close> = lunatik.runtime("steps")
        for _, step in ipairs{{first, second, {{}}}} do
          local n = step.n or #step
          local expected = table.pack(coroutine.resume(thread, table.unpack(step, 1, n)))
          local got = table.pack(pcall(rt.resume, rt, table.unpack(step, 1, n)))
          if expected[1] then same(expected, got) else assert(not got[1], got[2]) end
        end
      end
    end
    return "same"
    """
    assert run(lunatik, body) == b"same"


def test_methods_are_for_runtime_objects_alone(lunatik):
    body = """
    local rt <close> = lunatik.runtime("echo")
    for _, method in ipairs{"resume", "stop"} do
      for _, wrong in ipairs{{}, "echo", 1, print, coroutine.create(print)} do
        local ok, message = pcall(rt[method], wrong)
        assert(not ok and message:find("runtime expected", 1, true), message)
      end
      local ok, message = pcall(rt[method])
      assert(not ok and message:find("runtime expected", 1, true), message)
    end
    return "refused"
    """
    assert run(lunatik, body) == b"refused"


def test_resume_raises_for_a_runtime_that_cannot_be_resumed(rooted):
    lunatik = rooted(
        returned="return 1",
        failed="coroutine.yield() error('once')",
        stopped="coroutine.yield()",
    )
    body = """
    local returned, failed, stopped =
      lunatik.runtime("returned"), lunatik.runtime("failed"), lunatik.runtime("stopped")
    pcall(failed.resume, failed)
    stopped:stop()
    local messages = {}
    for i, rt in ipairs{returned, failed, stopped} do
      local ok, message = pcall(rt.resume, rt)
      assert(not ok)
      messages[i] = message:match("^cannot resume runtime %d+: (.*)$")
    end
    return table.unpack(messages)
    """
    assert run(lunatik, body) == (
        b"its script has returned",
        b"its script has failed",
        b"it is stopped",
    )


# ---- runtime:stop() ---------------------------------------------------------


@both_kinds
def test_stop_returns_no_value_and_ends_the_runtime_at_once(lunatik, script, sleep):
    creator = script(
        f"""
        local rt = lunatik.runtime("echo", {str(sleep).lower()})
        coroutine.yield()
        collectgarbage("stop")
        coroutine.yield(select("#", rt:stop()))
        """
    )
    assert lunatik.info().runtimes == 2
    assert creator.resume() == 0
    assert lunatik.info().runtimes == 1


def test_a_stopped_runtime_is_of_no_further_use(lunatik):
    body = """
    local rt = lunatik.runtime("echo")
    rt:stop()
    local ok, message = pcall(rt.resume, rt, 1)
    rt:stop()
    local again, same = pcall(rt.resume, rt, 1)
    return ok, again, message == same, message
    """
    ok, again, same, message = run(lunatik, body)
    assert (ok, again, same) == (False, False, True)
    assert message.endswith(b": it is stopped")


def test_stop_raises_when_somebody_else_runs_the_runtime_and_leaves_it_whole(rooted, tmp_path):
    lunatik = rooted(
        busy="""
        coroutine.yield()
        while not pcall(require, "go") do end
        return "finished"
        """
    )
    source = """
    local rt = lunatik.runtime("busy")
    coroutine.yield()
    coroutine.yield(pcall(rt.stop, rt))
    rt:stop()
    """
    with lunatik.runtime("creator", source=source) as creator:
        (busy,) = (one for one in lunatik.runtimes() if one.name == "busy")
        with ThreadPoolExecutor() as pool:
            running = pool.submit(_resume, busy.id)
            _wait_until_running(lunatik, busy.id)
            ok, message = creator.resume()
            (tmp_path / "go.lua").touch()
            assert running.result() == b"finished"
        assert ok is False
        assert message == b"runtime %d is busy: somebody else runs it" % busy.id
        creator.resume()


def _resume(runtime_id: int) -> object:
    lunatik = Lunatik.connect()
    try:
        (info,) = (one for one in lunatik.runtimes() if one.id == runtime_id)
        return Runtime(lunatik, info).resume()
    finally:
        lunatik.close()


def _wait_until_running(lunatik: Lunatik, runtime_id: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = {one.id: one.state for one in lunatik.runtimes()}
        if states[runtime_id] is State.RUNNING:
            return
    pytest.fail("the runtime never ran")
