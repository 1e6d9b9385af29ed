"""bucket.lua gives what an exact model gives, whatever the clock does."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from bridge.errors import LuaError

pytestmark = pytest.mark.kernel

WORK = """
local bucket = require "bucket"
local buckets
local works = {
  new = function(_, rate, burst, per, keys)
    buckets = bucket.new{ rate = rate, burst = burst, per = per, keys = keys }
  end,
  take = function(key, now, cost) return buckets:take(key, now, cost) end,
  level = function(key, now) return buckets:level(key, now) end,
  count = function() return #buckets end,
  flood = function(first, now, count)
    for key = first, first + count - 1 do buckets:take(key, now) end
    return #buckets
  end,
}
function work(first, what, ...) return works[what](first, ...) end
"""
SECOND = 10**9
NOW = 1_790_000_000 * SECOND


class Model:
    """One bucket, in fractions of tokens."""

    def __init__(self, rate: int, burst: int, per: int) -> None:
        self.rate, self.burst = Fraction(rate, per * SECOND), burst
        self.level, self.last = Fraction(burst), None

    def take(self, now: int, cost: int) -> list[object] | bool:
        if self.last is not None and now > self.last:
            self.level = min(Fraction(self.burst), self.level + (now - self.last) * self.rate)
        self.last = now
        if cost > self.burst:
            return False
        if cost > self.level:
            wait = (cost - self.level) / self.rate
            return [False, -(-wait.numerator // wait.denominator)]
        self.level -= cost
        return True


@pytest.fixture
def work(lua):
    return lua(WORK)


@pytest.mark.parametrize(
    ("rate", "burst", "per"),
    [(1, 1, 1), (3, 7, 1), (100, 200, 1), (7, 3, 60), (10**9, 10**9, 1), (1, 1, 10**9),
     (999_999_937, 13, 7)],
)  # fmt: skip
def test_buckets_follow_the_model_whatever_the_clock_does(work, rate, burst, per):
    chosen = random.Random(rate * 31 + burst)
    work(None, "new", rate, burst, per, 16)
    models = {key: Model(rate, burst, per) for key in ("a", b"\0\1", 5, -1)}
    token = max(1, per * SECOND // rate)
    now, answers = NOW, set()
    for _ in range(150):
        step = chosen.choice((0, 1, token - 1, token, chosen.randrange(3 * token * burst + 1)))
        back = chosen.random() < 0.1
        now = max(0, now - chosen.randrange(10 * SECOND)) if back else min(now + step, 2**62)
        key, model = chosen.choice(list(models.items()))
        cost = chosen.choice((0, 1, 1, 1, burst, burst + 1, chosen.randrange(burst + 1)))
        expected = model.take(now, cost)
        assert work(key, "take", now, cost) == expected
        assert work(key, "level", now) == int(model.level)
        answers.add(str(expected)[:2])
    assert answers == {"Tr", "Fa", "[F"}


def test_the_ends_of_time_do_not_overflow(work):
    work(None, "new", 10**9, 10**9, 1, 4)
    model = Model(10**9, 10**9, 1)
    for now in (0, 2**63 - 1, 0, -(2**63), -1, 2**62, NOW, NOW + SECOND):
        assert work("key", "take", now, 10**9) == model.take(now, 10**9)
        assert work("key", "level", now) == int(model.level)


def test_what_waits_that_long_is_given(work):
    work(None, "new", 3, 10, 1, 4)
    assert work("key", "take", NOW, 10) is True
    refused, wait = work("key", "take", NOW, 4)
    assert (refused, wait) == (False, 1_333_333_334)
    assert work("key", "take", NOW + wait - 1, 4) == [False, 1]
    assert work("key", "take", NOW + wait, 4) is True


def test_a_clock_that_steps_gives_at_most_a_burst(work):
    work(None, "new", 10, 5, 1, 4)
    given = 0
    for now in (NOW, NOW - 3600 * SECOND, NOW, NOW - 7200 * SECOND):
        # Back, each time: nothing is won, until the clock passes this time again.
        taken = [work("key", "take", now) for _ in range(7)]
        given += sum(one is True for one in taken)
    assert given == 5 + 5


def test_keys_are_bounded_and_full_buckets_go_first(work):
    work(None, "new", 1, 2, 1, 4)
    for key in range(4):
        assert work(key, "take", NOW + key, 2 if key != 2 else 0) is True
    assert work("new", "take", NOW + 10) is True
    assert work(None, "count") == 4
    # Key 2 was full, so it was replaced; the rest are empty still.
    for key in (0, 1, 3):
        assert work(key, "take", NOW + 10)[0] is False
    assert work("new", "level", NOW + 10) == 1


def test_the_fullest_bucket_goes_where_none_is_full(work):
    work(None, "new", 1, 10, 1, 3)
    for key, cost in (("a", 10), ("b", 5), ("c", 9)):
        assert work(key, "take", NOW, cost) is True
    assert work("d", "take", NOW, 10) is True
    assert [work(key, "level", NOW) for key in ("a", "c", "d")] == [0, 1, 0]
    assert work("b", "level", NOW) == 10


def test_eight_buckets_are_looked_at_and_the_next_ones_next_time(work):
    work(None, "new", 1, 100, 1, 20)
    for key in range(20):
        # Key 8 is the ninth; key 3 is the fullest of the first eight.
        assert work(key, "take", NOW, {3: 50, 8: 0}.get(key, 90)) is True
    assert work("one", "take", NOW, 90) is True
    assert [work(key, "level", NOW) for key in (3, 8, 7)] == [100, 100, 10]
    assert work("two", "take", NOW, 90) is True
    # Key 8 was full, so nothing shows that it went; 9 and the rest are still there.
    assert [work(key, "level", NOW) for key in range(9, 20)] == [10] * 11
    assert work("three", "take", NOW, 90) is True
    assert [work(key, "level", NOW) for key in range(8)].count(100) == 1
    assert work(9, "level", NOW) == 100


def test_a_thousand_keys_and_one_second_are_the_defaults(work):
    work(None, "new", 1, 1)
    for start in range(0, 1200, 200):
        assert work(start, "flood", NOW, 200) == min(start + 200, 1024)
    work(None, "new", 1, 1)
    assert work("key", "take", NOW) is True
    assert work("key", "take", NOW) == [False, SECOND]


def test_a_flood_of_keys_stays_within_memory_and_count(work):
    work(None, "new", 1, 1, 1, 2000)
    for start in range(0, 6_000, 250):
        assert work(start, "flood", NOW + start, 250) == min(start + 250, 2000)
    assert work.runtime.info().memory_bytes < 1024 * 1024


def test_a_flood_of_addresses_stays_within_memory(lua):
    work = lua("""
        local bucket = require "bucket"
        local buckets = bucket.new{ rate = 1, burst = 1, keys = 2048 }
        function work(first, now)
          for i = first, first + 299 do
            buckets:take(string.pack(">i8i8", i * 0x9e3779b97f4a7c15, i), now)
          end
          return #buckets
        end
    """)
    for start in range(0, 6_000, 300):
        assert work(start, NOW) == min(start + 300, 2048)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 1), "rate is an integer from 1 to 1000000000"),
        ((0, 1), "rate is an integer from 1 to 1000000000"),
        (("5", 1), "rate is an integer"),
        ((10**9 + 1, 1), "rate is an integer"),
        ((1, None), "burst is an integer from 1 to 1000000000"),
        ((1, -1), "burst is an integer"),
        ((1, 1, 0), "per is an integer from 1 to 1000000000"),
        ((1, 1, 1, 0), "keys is an integer from 1 to 65536"),
        ((1, 1, 1, 65537), "keys is an integer from 1 to 65536"),
        ((1, 32000, 32000), "burst times per is at most 1000000000"),
    ],
)
def test_wrong_options_raise_an_error(work, arguments, message):
    with pytest.raises(LuaError, match=f"library:[0-9]+: {message}"):
        work(None, "new", *arguments)


def test_a_negative_cost_raises_an_error(work):
    work(None, "new", 1, 1)
    with pytest.raises(LuaError, match=r"library:\d+: a cost is not negative"):
        work("key", "take", NOW, -1)
