from __future__ import annotations

import collections
import gc
import os
import random
import threading
import weakref
from dataclasses import dataclass

import cachetools
import cachetools.keys
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memguard import (
    CacheStatistics,
    LRUCache,
    MemoryCircuitBreaker,
    MemoryMonitor,
    deep_sizeof,
    format_bytes,
    release_memory,
)
from memguard.caching import _pressure as pressure
from memguard.relief import Relief, shrinkables
from memguard.relief._shrinking import Shrinkables
from memguard.testing import FakeClock, ScriptedSampler
from memguard.turns import Claim
from memguard.values import set_default_gate

MIB = 1024**2
LONG = 60.0


class Thing:
    def __init__(self, size=1):
        self.size = size


def assert_sums_are_right(cache):
    inside = cache._entries
    there = inside.there()
    assert (inside.count, inside.total_bytes) == (len(there), sum(entry.size for entry in there))
    assert inside.data.keys() == {entry.key for entry in there}


def kinds():
    """Each way in which a cache stores, by what it is configured for."""
    return [
        pytest.param({"max_entries": 3}, id="entries"),
        pytest.param({"max_bytes": 30, "sizeof": lambda value: 10}, id="bytes"),
        pytest.param({"max_entries": 3, "ttl": 1000}, id="age"),
        pytest.param({"max_bytes": 30, "sizeof": lambda value: 10, "ttl": 1000}, id="bytes and age"),
        pytest.param({"max_entries": 3, "on_evict": lambda *gone: None}, id="callback"),
        pytest.param({"max_entries": 3, "weak_values": True}, id="weak"),
    ]


@pytest.fixture
def values():
    return {name: Thing() for name in "abcdefgh"}


# ----- what every cache does


@pytest.mark.parametrize("options", kinds())
def test_the_least_recently_used_entry_goes_first(options, values):
    cache = LRUCache(**options)
    for name in "abc":
        cache[name] = values[name]

    assert cache.get("a") is values["a"]
    cache["d"] = values["d"]

    assert list(cache) == ["c", "a", "d"]
    assert "b" not in cache
    assert cache.get("b") is None
    assert cache.get("b", 5) == 5


@pytest.mark.parametrize("options", kinds())
def test_what_is_not_there_is_a_key_error_and_a_miss(options, values):
    cache = LRUCache(**options)
    cache["a"] = values["a"]

    with pytest.raises(KeyError):
        cache["b"]
    assert cache["a"] is values["a"]
    assert (cache.statistics().hits, cache.statistics().misses) == (1, 1)
    assert cache.statistics().hit_ratio == 0.5


@pytest.mark.parametrize("options", kinds())
def test_to_look_is_not_to_use(options, values):
    cache = LRUCache(**options)
    for name in "abc":
        cache[name] = values[name]

    assert "a" in cache
    assert cache.peek("a") is values["a"]
    assert cache.peek("z", 7) == 7
    assert next(iter(cache.items())) == ("a", values["a"])
    assert next(iter(cache.values())) is values["a"]
    assert ("a", values["a"]) in cache.items()
    assert ("a", 5) not in cache.items()
    assert "a" not in cache.items()
    assert values["a"] in cache.values()
    assert (len(cache.items()), len(cache.values()), list(cache.keys())) == (3, 3, ["a", "b", "c"])
    cache["d"] = values["d"]

    assert "a" not in cache
    assert (cache.statistics().hits, cache.statistics().misses) == (0, 0)


@pytest.mark.parametrize("options", kinds())
def test_it_is_a_mutable_mapping(options, values):
    cache = LRUCache(**options)
    cache.update(a=values["a"], b=values["b"])

    assert cache.setdefault("a", values["c"]) is values["a"]
    assert cache.setdefault("c", values["c"]) is values["c"]
    assert cache.pop("a") is values["a"]
    assert cache.pop("a", None) is None
    with pytest.raises(KeyError):
        cache.pop("a")
    assert cache.popitem() == ("b", values["b"])
    del cache["c"]
    with pytest.raises(KeyError):
        del cache["c"]
    with pytest.raises(KeyError, match="empty"):
        cache.popitem()
    assert not cache
    cache["a"] = values["a"]
    assert cache == {"a": values["a"]}
    cache.clear()
    assert (len(cache), cache.total_bytes) == (0, 0)


@pytest.mark.parametrize("options", kinds())
def test_a_value_in_the_place_of_another_is_the_newest(options, values):
    cache = LRUCache(**options)
    for name in "abc":
        cache[name] = values[name]
    cache["a"] = values["d"]

    assert list(cache) == ["b", "c", "a"]
    assert cache.peek("a") is values["d"]


def test_none_can_be_a_value():
    cache = LRUCache(3)
    cache["a"] = None

    assert "a" in cache
    assert cache.get("a", 5) is None
    assert cache.pop("a") is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "without a bound is a leak"),
        ({"max_entries": 0}, ValueError, "max_entries is 1 or more, got 0"),
        ({"max_entries": True}, TypeError, "got True"),
        ({"max_entries": "50 MiB"}, TypeError, "bytes go into max_bytes"),
        ({"max_bytes": 0}, ValueError, "max_bytes is 1 byte or more, got 0"),
        ({"max_bytes": "50m"}, ValueError, "two meanings"),
        ({"max_entries": 3, "max_entry_bytes": 0}, ValueError, "max_entry_bytes"),
        ({"max_entries": 3, "ttl": 0}, ValueError, "ttl .* 0"),
        ({"max_entries": 3, "ttl": float("nan")}, ValueError, "nan"),
        ({"max_entries": 3, "ttl": "1h"}, TypeError, "'1h'"),
        ({"max_entries": 3, "sizeof": 5}, TypeError, "sizeof .* 5"),
        ({"max_entries": 3, "on_evict": 5}, TypeError, "on_evict .* 5"),
        ({"max_entries": 3, "timer": 5}, TypeError, "timer .* 5"),
    ],
)
def test_nonsense_is_refused_at_the_door(options, error, words):
    with pytest.raises(error, match=words):
        LRUCache(**options)


def test_the_typical_configurations_are_one_line_each():
    hour, day = 3600, 86_400
    for options in (
        {"max_entries": 1000, "max_bytes": "50 MiB", "ttl": hour},
        {"max_entries": 5000, "max_bytes": "100 MiB", "ttl": day},
        {"max_entries": 500, "max_bytes": "25 MiB", "ttl": hour / 2},
    ):
        cache = LRUCache(**options)
        cache["a"] = 1
        assert (cache.max_entries, format_bytes(cache.max_bytes)) == (options["max_entries"], options["max_bytes"])


def test_its_repr_tells_name_and_bounds():
    assert repr(LRUCache(5, max_bytes=10, name="pages")) == "<LRUCache 'pages', 0 entries of 5 entries or 10 bytes>"
    assert LRUCache(5, name="pages").name == "pages"


# ----- bytes


def test_bytes_are_bounded_and_counted():
    cache = LRUCache(max_bytes=100, sizeof=len)
    for number in range(10):
        cache[number] = "x" * 30

    assert (len(cache), cache.total_bytes) == (3, 90)
    cache[9] = "x" * 10
    assert cache.total_bytes == 70
    assert cache.statistics().evictions == 7


def test_both_bounds_hold():
    cache = LRUCache(2, max_bytes=100, sizeof=len)
    for number in range(4):
        cache[number] = "x"
    assert len(cache) == 2
    cache["large"] = "x" * 100
    assert list(cache) == ["large"]


@pytest.mark.parametrize("options", [{}, {"on_evict": print}, {"ttl": 5}])
def test_what_is_larger_than_an_entry_may_be_is_not_stored_and_counted(options):
    cache = LRUCache(max_bytes=100, sizeof=len, max_entry_bytes=50, **options)
    cache["a"] = "small"
    cache["a"] = "x" * 51
    cache["b"] = "x" * 51

    assert (len(cache), cache.total_bytes) == (0, 0)
    assert cache.statistics().rejected == 2


def test_without_a_sizeof_the_key_the_value_and_the_cache_s_own_part_count():
    cache = LRUCache(max_bytes=MIB)
    cache["key"] = "value" * 100

    assert cache.total_bytes > deep_sizeof("key") + deep_sizeof("value" * 100)
    assert cache.statistics().total_bytes == cache.total_bytes


def test_a_cache_that_weighs_nothing_estimates_its_bytes():
    cache = LRUCache(1000)
    assert cache.total_bytes == 0
    for number in range(1000):
        cache[number] = "x" * 1000

    assert 1_000_000 < cache.total_bytes < 1_400_000


@pytest.mark.parametrize(("size", "error"), [(1.5, TypeError), (True, TypeError), (None, TypeError), (-1, ValueError)])
@pytest.mark.parametrize("options", [{}, {"ttl": 5}])
def test_a_size_that_is_none_is_an_error_and_stores_nothing(size, error, options):
    cache = LRUCache(max_bytes=100, sizeof=lambda value: size, **options)

    with pytest.raises(error, match="sizeof"):
        cache["a"] = 1
    assert (len(cache), cache.total_bytes) == (0, 0)


def test_a_numpy_like_integer_is_a_size():
    class Index:
        def __index__(self):
            return 7

    cache = LRUCache(max_bytes=100, sizeof=lambda value: Index())
    cache["a"] = 1

    assert cache.total_bytes == 7


@pytest.mark.parametrize("options", [{}, {"ttl": 5}, {"on_evict": print}])
def test_a_sizeof_that_raises_leaves_the_cache_as_it_was(options):
    def sizeof(value):
        if value == "bad":
            raise RuntimeError("no size")
        return 10

    cache = LRUCache(max_bytes=100, sizeof=sizeof, **options)
    cache["a"] = "good"
    with pytest.raises(RuntimeError):
        cache["a"] = "bad"

    assert (cache["a"], cache.total_bytes) == ("good", 10)


def test_bounds_can_change_while_it_is_used():
    cache = LRUCache(10)
    for number in range(10):
        cache[number] = "x" * 100

    cache.resize(max_entries=5)
    assert list(cache) == [5, 6, 7, 8, 9]
    cache.resize(max_entries=None, max_bytes=10_000)
    assert (cache.max_entries, cache.max_bytes, len(cache)) == (None, 10_000, 5)
    before = cache.total_bytes
    assert before > 500
    cache.resize(max_bytes=before - 1)
    assert list(cache) == [6, 7, 8, 9]
    with pytest.raises(ValueError, match="without a bound"):
        cache.resize(max_bytes=None)
    cache[10] = "y"
    assert cache.total_bytes <= before


def test_an_entry_s_bound_follows_the_cache_s_unless_it_is_tighter():
    cache = LRUCache(max_bytes=100, sizeof=len)
    cache.resize(max_bytes=200)
    cache["a"] = "x" * 150
    assert "a" in cache

    tight = LRUCache(max_bytes=100, sizeof=len, max_entry_bytes=20)
    tight.resize(max_bytes=200)
    tight["a"] = "x" * 50
    assert "a" not in tight


def test_it_shrinks_by_a_part_or_to_a_size():
    cache = LRUCache(max_bytes=1000, sizeof=len)
    for number in range(10):
        cache[number] = "x" * 100

    assert cache.shrink(fraction=0.3) == 300
    assert cache.shrink(to_bytes=500) == 200
    assert cache.total_bytes == 500
    assert cache.shrink(to_bytes=600) == 0
    assert cache.shrink(fraction=1) == 500
    assert cache.shrink(fraction=1) == 0
    with pytest.raises(TypeError):
        cache.shrink()
    with pytest.raises(TypeError):
        cache.shrink(to_bytes=5, fraction=0.5)
    with pytest.raises(ValueError, match=r"1\.5"):
        cache.shrink(fraction=1.5)


def test_a_cache_that_weighs_nothing_shrinks_by_its_share_of_entries():
    cache = LRUCache(5000)
    for number in range(4000):
        cache[number] = number

    assert cache.shrink(fraction=0.5) > 0
    assert len(cache) == 2000


# ----- age


def aged(**options):
    clock = FakeClock()
    return LRUCache(max_entries=10, timer=clock, **options), clock


def test_an_entry_is_found_for_its_time_to_live_and_never_again():
    cache, clock = aged(ttl=10)
    cache["a"] = 1
    clock.advance(9.9)
    assert cache.get("a") == 1
    clock.advance(0.1)

    assert "a" not in cache
    assert cache.peek("a") is None
    assert cache.get("a") is None
    with pytest.raises(KeyError):
        cache["a"]
    assert cache.pop("a", None) is None
    assert (len(cache), cache.statistics().expirations) == (0, 1)


def test_an_entry_may_have_a_time_to_live_of_its_own():
    cache, clock = aged(ttl=10)
    cache.set("short", 1, ttl=5)
    cache.set("long", 2, ttl=50)
    cache.set("usual", 3)
    clock.advance(6)
    assert list(cache) == ["long", "usual"]
    clock.advance(6)
    assert list(cache) == ["long"]
    cache["long"] = 4
    clock.advance(11)
    assert list(cache) == []


@pytest.mark.parametrize("bytes_too", [False, True])
def test_a_cache_without_ages_begins_to_keep_them_with_the_first(bytes_too):
    clock = FakeClock()
    options = {"max_bytes": 1000, "sizeof": lambda value: 1} if bytes_too else {"max_entries": 10}
    cache = LRUCache(**options, timer=clock)
    cache["before"] = 1
    cache.set("short", 2, ttl=5)
    cache["after"] = 3
    clock.advance(6)

    assert list(cache) == ["before", "after"]
    assert cache.get("before") == 1
    assert cache["after"] == 3


def test_being_found_makes_an_entry_young_only_where_that_is_asked_for():
    for sliding, left in ((True, ["a"]), (False, [])):
        cache, clock = aged(ttl=10, update_age_on_get=sliding)
        cache["a"] = 1
        clock.advance(8)
        assert cache.get("a") == 1
        assert "a" in cache  # which changes nothing
        clock.advance(8)
        assert list(cache) == left


def test_an_entry_of_its_own_time_grows_young_for_that_time():
    cache, clock = aged(ttl=10, update_age_on_get=True)
    cache.set("a", 1, ttl=100)
    clock.advance(90)
    assert cache["a"] == 1
    clock.advance(90)
    assert cache["a"] == 1
    clock.advance(101)
    assert "a" not in cache


def test_expire_drops_what_is_over_and_says_how_many():
    cache, clock = aged(ttl=10)
    cache["a"] = cache["b"] = 1
    clock.advance(5)
    cache["c"] = 1
    clock.advance(5)

    assert cache.expire() == 2
    assert cache.expire() == 0
    assert LRUCache(5).expire() == 0
    assert list(cache) == ["c"]


def test_what_expired_does_not_stay_for_ever_where_nobody_asks_for_it():
    clock = FakeClock()
    cache = LRUCache(max_entries=100_000, ttl=10, timer=clock)
    for number in range(1000):
        cache[number] = number
    clock.advance(11)
    for number in range(1000, 1010):
        clock.advance(1)
        cache[number] = number

    assert len(cache._entries.data) < 20


def test_an_expired_entry_that_is_dropped_for_room_has_expired():
    gone = []
    clock = FakeClock()
    cache = LRUCache(1, ttl=10, timer=clock, on_evict=lambda *event: gone.append(event))
    cache["a"] = 1
    clock.advance(10)
    cache["b"] = 2

    assert gone == [("a", 1, "expired")]
    assert (cache.statistics().evictions, cache.statistics().expirations) == (0, 1)


# ----- callbacks


def told(**options):
    gone = []
    return LRUCache(on_evict=lambda key, value, reason: gone.append((key, value, reason)), **options), gone


def test_the_callback_hears_of_each_entry_that_goes_and_why():
    cache, gone = told(max_entries=2, max_bytes=100, sizeof=len)
    cache["a"] = "1"
    cache["a"] = "2"
    cache["b"] = "b"
    cache["c"] = "c"
    cache["d"] = "x" * 100
    del cache["d"]
    cache["e"] = "e"
    cache.shrink(fraction=1)
    cache["f"] = "f"
    cache.clear()

    assert gone == [
        ("a", "1", "replaced"),
        ("a", "2", "entries"),
        ("b", "b", "size"),
        ("c", "c", "size"),
        ("d", "x" * 100, "deleted"),
        ("e", "e", "pressure"),
        ("f", "f", "deleted"),
    ]


def test_the_same_value_again_is_not_replaced():
    cache, gone = told(max_entries=2)
    cache["a"] = cache.setdefault("a", "x")

    assert gone == []


def test_a_callback_that_raises_is_logged_and_breaks_nothing(caplog):
    cache = LRUCache(1, on_evict=lambda *event: 1 / 0, name="pages")
    cache["a"] = 1
    cache["b"] = 2

    assert list(cache) == ["b"]
    assert "'pages'" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_use_the_cache_from_another_thread():
    """It would hang if the lock were held meanwhile."""
    seen = []

    def on_evict(key, value, reason):
        thread = threading.Thread(target=lambda: seen.append(cache.setdefault("from the callback", key)))
        thread.start()
        thread.join(LONG)

    cache = LRUCache(2, max_bytes=100, sizeof=lambda value: 1, on_evict=on_evict)
    cache["a"] = 1
    cache["b"] = 2
    cache._on_evict, on = None, cache._on_evict
    cache["c"] = 3
    cache._on_evict = on
    cache.pop("b")

    assert seen == ["b"]


@pytest.mark.parametrize("options", kinds()[:5])
def test_what_is_dropped_dies_outside_of_the_lock(options):
    free = []

    class Dying:
        def __del__(self):
            def ask():
                cache.pop("nothing", None)
                free.append(True)

            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(5)

    cache = LRUCache(**options)
    cache["a"] = Dying()
    cache["a"] = 5
    cache["b"] = Dying()
    for name in "cdef":
        cache[name] = 1
    cache["g"] = Dying()
    cache.clear()

    assert len(free) == 3


# ----- weak values


def test_a_weakly_held_value_goes_when_nobody_else_holds_it():
    cache = LRUCache(10, weak_values=True)
    thing = Thing()
    cache["a"] = thing
    assert cache["a"] is thing
    del thing
    gc.collect()

    assert "a" not in cache
    assert cache.get("a") is None
    assert (len(cache), list(cache.items())) == (0, [])
    cache["b"] = other = Thing()
    assert len(cache) == 1
    assert other


def test_what_takes_no_weak_reference_is_refused():
    with pytest.raises(TypeError, match="cannot hold a int"):
        LRUCache(10, weak_values=True)["a"] = 5


def test_a_weak_cache_counts_bytes_while_they_live():
    cache = LRUCache(max_bytes=100, sizeof=lambda thing: thing.size, weak_values=True)
    kept = [Thing(30) for _ in range(5)]
    for number, thing in enumerate(kept):
        cache[number] = thing

    assert (list(cache), cache.total_bytes) == ([2, 3, 4], 90)
    del kept[3], thing
    gc.collect()
    assert cache.total_bytes == 60


# ----- as cachetools knows it


def test_it_serves_as_the_cache_of_cachetools():
    cache = LRUCache(2)
    calls = []

    @cachetools.cached(cache, key=cachetools.keys.hashkey, lock=threading.RLock(), info=True)
    def double(x):
        calls.append(x)
        return 2 * x

    assert [double(1), double(1), double(2)] == [2, 2, 4]
    assert calls == [1, 2]
    assert double.cache_info() == (1, 2, 2, 2)

    class Service:
        def __init__(self):
            self.cache = LRUCache(max_bytes=1000)

        @cachetools.cachedmethod(lambda self: self.cache)
        def triple(self, x):
            calls.append(x)
            return 3 * x

    service = Service()
    assert [service.triple(5), service.triple(5)] == [15, 15]
    assert calls == [1, 2, 5]


def test_it_has_the_names_of_cachetools():
    entries, nbytes = LRUCache(5), LRUCache(5, max_bytes=100, sizeof=len)
    entries["a"] = nbytes["a"] = "xyz"

    assert (entries.maxsize, entries.currsize, entries.getsizeof("xyz")) == (5, 1, 1)
    assert (nbytes.maxsize, nbytes.currsize, nbytes.getsizeof("xyz")) == (100, 3, 3)
    assert LRUCache(max_bytes=1000).getsizeof("xyz") == deep_sizeof("xyz")
    assert isinstance(entries, cachetools.Cache)


def test_a_subclass_of_one_s_own_does_all_of_it():
    class Mine(LRUCache):
        pass

    cache = Mine(max_bytes=100, sizeof=len, ttl=10)
    cache["a"] = "x"

    assert (type(cache), cache["a"], cache.total_bytes) == (Mine, "x", 1)


# ----- pressure


@pytest.fixture
def tight():
    """The default breaker follows a script; the function sets the part of the limit that is used."""
    clock = FakeClock()
    sampler = ScriptedSampler([0.5], clock=clock)
    breaker = MemoryCircuitBreaker(sampler=sampler, clock=clock, relief=False)
    from memguard import default_breaker

    set_default_gate(lambda: breaker)

    def use(fraction):
        sampler.then(fraction)
        clock.advance(2)

    yield use
    set_default_gate(default_breaker)


def test_under_pressure_it_shrinks_and_grows_back_only_when_memory_is_normal(tight):
    cache = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: MIB)
    for number in range(40):
        cache[number] = number
    assert cache.total_bytes == 40 * MIB

    tight(0.9)
    for number in range(40, 60):
        cache[number] = number
    held = cache.total_bytes
    assert held < 40 * MIB

    tight(0.72)
    for number in range(60, 100):
        cache[number] = number
    assert cache.total_bytes <= held

    tight(0.5)
    for number in range(100, 200):
        cache[number] = number
    assert cache.total_bytes >= 99 * MIB


def test_a_cache_of_entries_gives_way_too(tight):
    cache = LRUCache(100_000)
    for number in range(4000):
        cache[number] = number
    tight(0.9)
    for number in range(4000, 12_000):
        cache[number] = number

    assert len(cache) < 6000


def test_a_cache_that_shall_not_shrink_does_not(tight):
    cache = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: MIB, shrink_under_pressure=False)
    tight(0.9)
    for number in range(40):
        cache[number] = number
    before = shrinkables.shrinkable_bytes()

    assert cache.total_bytes == 40 * MIB
    assert shrinkables.held_bytes() >= before + 40 * MIB


def test_relief_shrinks_the_least_useful_cache_first():
    gc.collect()
    useful = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: MIB, name="useful")
    useless = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: MIB, name="useless")
    for number in range(40):
        useful[number] = useless[number] = number
    for number in range(40):
        useful[number]

    given = shrinkables.shrink(10 * MIB)

    assert given >= 10 * MIB
    assert useful.total_bytes == 40 * MIB
    assert useless.total_bytes <= 30 * MIB
    shrinkables.shrink(40 * MIB)
    assert useful.total_bytes >= 20 * MIB


def test_release_memory_shrinks_caches_by_half():
    gc.collect()
    cache = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: MIB)
    for number in range(40):
        cache[number] = number

    assert release_memory(caches=0).steps[0].name == "caches"
    assert cache.total_bytes == 40 * MIB
    release_memory()

    assert cache.total_bytes <= 20 * MIB
    with pytest.raises(ValueError, match="2"):
        release_memory(caches=2)


def test_a_breaker_asks_caches_before_it_refuses():
    gc.collect()
    cache = LRUCache(max_bytes=1000 * MIB, sizeof=lambda value: MIB)
    for number in range(400):
        cache[number] = number
    limit = 1000 * MIB
    clock = FakeClock()

    class Sampler(ScriptedSampler):
        def __call__(self):
            self.then(300 * MIB + cache.total_bytes)
            return super().__call__()

    breaker = MemoryCircuitBreaker(sampler=Sampler([0.5], limit_bytes=limit, clock=clock), clock=clock)

    with breaker.reserve(200 * MIB):
        assert 200 * MIB <= cache.total_bytes <= 300 * MIB


class _Used(ScriptedSampler):
    """Reads what is used beside a cache, and what the cache holds."""

    def __init__(self, cache, beside, clock):
        super().__init__([0.5], limit_bytes=1000 * MIB, clock=clock)
        self.cache, self.beside = cache, beside

    def __call__(self):
        self.then(self.beside + self.cache.total_bytes)
        return super().__call__()


@pytest.fixture
def full():
    """A cache that fills memory up to the line of a breaker that may shrink it."""
    gc.collect()
    clock = FakeClock()
    cache = LRUCache(max_bytes=1000 * MIB, sizeof=lambda value: value)
    sampler = _Used(cache, 100 * MIB, clock)
    breaker = MemoryCircuitBreaker(sampler=sampler, clock=clock)
    for number in range(69):
        cache[number] = 10 * MIB
    return cache, breaker


def test_no_reservation_is_refused_as_long_as_caches_can_give_way_for_it(full):
    cache, breaker = full

    for number in range(100, 130):
        with breaker.reserve(40 * MIB):
            cache[number] = 40 * MIB

    assert breaker.statistics().refused == 0
    assert cache.total_bytes >= 500 * MIB


def test_caches_that_were_asked_for_nothing_can_be_asked_at_once():
    caches = Shrinkables()
    cache = LRUCache(max_bytes=1000, sizeof=len)
    cache["a"] = b"x" * 1000
    caches.add(cache)
    relief = Relief((), FakeClock(), caches=caches)

    assert relief.attempt(lambda: 5000, wanted=lambda used: 0)
    assert relief.attempt(lambda: 5000, wanted=lambda used: 10)

    assert cache.total_bytes == 0


def test_a_reservation_that_grows_asks_caches_too(full):
    cache, breaker = full

    with breaker.reserve(MIB) as reservation:
        reservation.resize(300 * MIB)

    assert cache.total_bytes <= 500 * MIB


def test_caches_give_way_before_a_reservation_opens_the_circuit(full):
    cache, breaker = full
    cache["too much"] = 200 * MIB

    with breaker.reserve(MIB):
        pass

    assert breaker.statistics().opened == 0
    assert cache.total_bytes <= 700 * MIB


def test_caches_give_a_little_more_than_is_asked_for(full):
    cache, breaker = full
    with breaker.reserve(40 * MIB):
        pass

    held = cache.total_bytes
    with breaker.reserve(50 * MIB):
        pass

    assert cache.total_bytes == held


def test_a_cache_that_weighs_nothing_looks_early_how_large_its_values_are(tight):
    cache = LRUCache(1000)
    tight(0.9)
    for number in range(20):
        cache[number] = bytes(MIB)

    assert len(cache) < 10


def test_to_look_how_large_values_are_hashes_no_key(tight):
    hashed = []

    class Key:
        def __hash__(self):
            hashed.append(self)
            return 1

    cache = LRUCache(1000)
    cache[Key()] = bytes(MIB)
    hashed.clear()

    assert cache._glance() >= MIB
    assert hashed == []


def test_it_holds_no_more_entries_than_its_tables_could_be_made_anew_for(tight):
    small = MemoryCircuitBreaker(sampler=ScriptedSampler([0.5], limit_bytes=6 * MIB), relief=False)
    set_default_gate(lambda: small)
    cache = LRUCache(max_bytes=1000 * MIB, sizeof=lambda value: 2048)
    for number in range(12_000):
        cache[number] = None

    assert len(cache) <= 3 * MIB // 300 + MIB // 2048  # one look later


def test_no_more_than_half_of_its_entries_go_for_its_tables_at_a_time(tight):
    none = MemoryCircuitBreaker(sampler=ScriptedSampler([1.0]), relief=False, mode="observe")
    set_default_gate(lambda: none)
    cache = LRUCache(100)
    for number in range(16):
        cache[number] = None

    assert len(cache) == 8


def test_who_stores_while_another_relieves_waits_for_it(tight):
    cache = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: 2 * MIB)
    done = threading.Event()

    claim = Claim(pressure.relieving)
    assert claim.take()
    try:
        other = threading.Thread(target=lambda: (cache.__setitem__("a", 1), done.set()))
        other.start()
        waited = not done.wait(0.05)
    finally:
        claim.give_back()
    other.join(LONG)

    assert waited
    assert done.is_set()


def test_the_monitor_takes_what_caches_hold_for_known():
    gc.collect()
    cache = LRUCache(max_bytes=1000 * MIB, sizeof=lambda value: MIB)
    cache["a"] = 1

    assert MemoryMonitor().health()["explained_bytes"]["caches"] >= MIB


def test_a_cache_that_nobody_holds_is_forgotten():
    cache = LRUCache(10)
    gone = weakref.ref(cache)
    known = len(shrinkables.alive())
    del cache
    gc.collect()

    assert gone() is None
    assert len(shrinkables.alive()) < known


# ----- threads


@pytest.mark.parametrize("options", kinds()[:5])
def test_many_threads_leave_it_consistent(options):
    cache = LRUCache(**options)
    failed = []

    def work(seed):
        dice = random.Random(seed)
        try:
            for _ in range(3000):
                key = dice.randrange(6)
                match dice.randrange(8):
                    case 0 | 1:
                        cache[key] = seed
                    case 2 | 3:
                        cache.get(key)
                    case 4:
                        cache.pop(key, None)
                    case 5:
                        list(cache.items())
                    case 6:
                        cache.shrink(fraction=0.5)
                    case 7:
                        cache.clear()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert failed == []
    assert len(cache) <= 3
    assert_sums_are_right(cache)


@pytest.mark.parametrize(
    "look",
    [
        lambda cache: cache.held_bytes(),
        lambda cache: cache.shrink(fraction=0.1),
        lambda cache: cache.clear(),
        lambda cache: cache.resize(max_bytes=10 * MIB),
        lambda cache: list(cache.items()),
        lambda cache: cache._glance(),
    ],
    ids=["held_bytes", "shrink", "clear", "resize", "items", "glance"],
)
def test_a_collection_that_runs_code_in_the_midst_of_a_look_does_no_harm(look):
    cache = LRUCache(1000)
    cache.update((number, [number]) for number in range(300))
    coming = iter(range(1000, 1050))
    unfree = [(number, number) for number in range(5000)]  # tuples that are used again make the collector run less

    def meanwhile(phase, info):
        for number in coming:
            cache[number] = number
            break

    threshold = gc.get_threshold()
    gc.callbacks.append(meanwhile)
    gc.set_threshold(1)
    try:
        look(cache)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(meanwhile)

    assert cache.keys() <= {*range(300), *range(1000, 1050)}
    assert unfree


@dataclass(frozen=True)
class SlowKey:
    """Its hash and comparison are Python: threads may change in their midst."""

    number: int


@pytest.mark.parametrize("options", kinds()[:5])
def test_keys_whose_hash_is_written_in_python_do_no_harm(options):
    cache = LRUCache(**options)
    failed = []

    def work(seed):
        dice = random.Random(seed)
        try:
            for _ in range(800):
                key = SlowKey(dice.randrange(6))
                cache[key] = seed
                cache.get(SlowKey(dice.randrange(6)))
                cache.pop(SlowKey(dice.randrange(6)), None)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert failed == []
    assert len(cache) <= 3
    assert len(list(cache)) == len(cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_that_it_does_not_have():
    cache = LRUCache(max_bytes=100, sizeof=len)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with cache._entries._lock:
            inside.set()
            leave.wait(LONG)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(LONG)
    child = os.fork()
    if child == 0:
        cache["a"] = "x"
        os._exit(0 if cache["a"] == "x" else 1)
    _, status = os.waitpid(child, 0)
    leave.set()
    holder.join(LONG)

    assert status == 0


# ----- against a model


class Machine(RuleBasedStateMachine):
    """A cache beside the simplest thing that does the same."""

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.gone = []
        self.cache = LRUCache(
            6, max_bytes=100, sizeof=len, ttl=10, timer=self.clock, on_evict=lambda *event: self.gone.append(event)
        )
        self.model = collections.OrderedDict()
        self.bound = 100

    def expire(self):
        for key in [key for key, (_, at) in self.model.items() if self.clock.now >= at]:
            del self.model[key]

    def fit(self):
        while sum(len(value) for value, _ in self.model.values()) > self.bound or len(self.model) > 6:
            self.model.popitem(last=False)

    @rule(key=st.integers(0, 8), size=st.integers(0, 120), ttl=st.sampled_from([None, 3.0, 30.0]))
    def put(self, key, size, ttl):
        self.expire()
        value = "x" * size
        self.cache.expire()
        self.cache.set(key, value, ttl=ttl)
        self.model.pop(key, None)
        if size <= self.bound:
            self.model[key] = value, self.clock.now + (10 if ttl is None else ttl)
            self.fit()

    @rule(key=st.integers(0, 8))
    def take(self, key):
        self.expire()
        found = self.model.get(key)
        if found:
            self.model.move_to_end(key)
        assert self.cache.get(key) == (found[0] if found else None)

    @rule(key=st.integers(0, 8))
    def drop(self, key):
        self.expire()
        found = self.model.pop(key, None)
        assert self.cache.pop(key, None) == (found[0] if found else None)

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule(fraction=st.sampled_from([0.0, 0.3, 1.0]))
    def shrink(self, fraction):
        self.cache.expire()
        self.expire()
        target = self.cache.total_bytes - round(self.cache.total_bytes * fraction)
        self.cache.shrink(fraction=fraction)
        if fraction:
            while sum(len(value) for value, _ in self.model.values()) > target:
                self.model.popitem(last=False)

    @rule(bound=st.sampled_from([50, 100, 150]))
    def resize(self, bound):
        self.cache.expire()
        self.expire()
        self.cache.resize(max_bytes=bound)
        self.bound = bound
        self.fit()

    @rule()
    def clear(self):
        self.cache.clear()
        self.model.clear()

    @invariant()
    def same(self):
        self.expire()
        assert list(self.cache.items()) == [(key, value) for key, (value, _) in self.model.items()]
        assert self.cache.total_bytes <= self.bound
        assert_sums_are_right(self.cache)


Machine.TestCase.settings = hypothesis_settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAgainstAModel = Machine.TestCase


def test_statistics_of_nothing():
    assert LRUCache(5).statistics() == CacheStatistics(0, 0, 0, 0, 0, 0, 0, 5, None)
    assert LRUCache(5).statistics().hit_ratio == 0.0


def test_a_breaker_that_refuses_is_no_error_of_the_cache(tight):
    cache = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: MIB)
    tight(0.95)
    for number in range(10):
        cache[number] = number

    assert len(cache) < 10
