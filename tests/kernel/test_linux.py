"""The library linux: time, random numbers, interfaces, the kernel log, sleeping."""

from __future__ import annotations

import subprocess
import time

import pytest

from bridge.errors import LuaError
from bridge.lunatik import Lunatik

pytestmark = pytest.mark.kernel


@pytest.fixture
def evaluate(script):
    """Run Lua in a runtime that may sleep, or not, and return what it returns."""

    def evaluate(code: str, *, sleep: bool = True, **options: object):
        source = f"local linux = require 'linux' coroutine.yield() {code}"
        return script(source, sleep=sleep, **options).resume()

    return evaluate


either = pytest.mark.parametrize("sleep", [True, False])


@either
def test_time_is_the_wall_clock_in_nanoseconds(evaluate, sleep):
    before = time.time_ns()
    now = evaluate("return linux.time()", sleep=sleep)
    assert before <= now <= time.time_ns()


@either
def test_difftime_is_the_later_minus_the_earlier(evaluate, sleep):
    assert evaluate("return linux.difftime(50, 8), linux.difftime(8, 50)", sleep=sleep) == (
        42, -42,
    )  # fmt: skip


@either
def test_interfaces_are_those_of_the_runtimes_namespace(evaluate, router, sleep):
    host = router["router"]
    assert evaluate(
        """
        local index = linux.ifindex("eth1")
        return index, linux.ifname(index), linux.ifindex("lo"), linux.ifname(1),
          linux.ifindex("nowhere0"), linux.ifname(9999)
        """,
        sleep=sleep,
        netns=host.netns,
    ) == (host.index("eth1"), b"eth1", 1, b"lo", None, None)
    assert evaluate("return linux.ifindex('eth1')", sleep=sleep) is None


@pytest.mark.parametrize("index", ["0", "-1", "1 << 40", "math.mininteger"])
def test_an_impossible_index_has_no_name(evaluate, index):
    assert evaluate(f"return linux.ifname({index})") is None


def test_schedule_sleeps_for_milliseconds(evaluate):
    slept = evaluate(
        "local from = linux.time() linux.schedule(50) return linux.difftime(linux.time(), from)"
    )
    assert slept >= 50_000_000


def test_schedule_without_time_lets_others_run(evaluate):
    assert evaluate("linux.schedule() linux.schedule(0) return true") is True


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("linux.schedule(-1)", "0 to 10000 milliseconds"),
        ("linux.schedule(10001)", "0 to 10000 milliseconds"),
        ("linux.schedule('x')", "number expected"),
        ("linux.ifindex()", "string expected"),
        ("linux.ifname('lo')", "number expected"),
        ("linux.difftime(1)", "number expected"),
        ("linux.log('loud', 'x')", "invalid option 'loud'"),
    ],
)
def test_bad_arguments_are_named(evaluate, call, message):
    with pytest.raises(LuaError, match=message):
        evaluate(call)


def test_a_runtime_that_cannot_sleep_is_told(evaluate):
    with pytest.raises(LuaError, match="only a sleepable runtime can sleep"):
        evaluate("linux.schedule(1)", sleep=False)


def test_all_sleeps_of_a_call_together_are_bounded():
    source = """
    local linux = require "linux"
    local ok, why
    while true do
      coroutine.yield(ok, why)
      ok, why = pcall(function() while true do linux.schedule(300) end end)
    end
    """
    with (
        Lunatik.load(body_wait=1000) as lunatik,
        lunatik.runtime("s", source=source) as sleeper,
    ):
        for _ in range(2):  # each call has a second of its own
            ok, why = sleeper.resume()
            assert ok is False
            assert b"has waited as long as it may (body_wait)" in why


def test_a_body_that_sleeps_can_be_killed(lunatik):
    """Whoever creates a runtime and is killed meanwhile leaves nothing behind."""
    import sys

    code = (
        "from bridge.lunatik import Lunatik\n"
        "Lunatik.connect().runtime('sleeper', source=\"local linux = require 'linux' "
        "print('asleep') while true do linux.schedule(10000) end\")\n"
    )
    sleeper = subprocess.Popen([sys.executable, "-c", code], cwd="/project")
    deadline = time.monotonic() + 60
    while lunatik.info().runtimes == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sleeper.kill()
    sleeper.wait(5)
    while lunatik.info().runtimes:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("level", "number"), [("info", 6), ("notice", 5), ("warn", 4), ("err", 3)]
)
def test_log_writes_at_the_level_asked_for(evaluate, level, number):
    text = f"a line at {level} {time.monotonic_ns()}"
    evaluate(f"linux.log('{level}', '{text}')")
    raw = subprocess.run(["dmesg", "--raw"], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in raw.splitlines() if text in line]
    assert line.startswith(f"<{number}>")


def test_log_is_limited_in_rate(evaluate):
    marker = f"flood {time.monotonic_ns()}"
    evaluate(f"for i = 1, 1000 do linux.log('{marker} ' .. i) end")
    raw = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    written = sum(marker in line for line in raw.splitlines())
    assert 0 < written <= 200
