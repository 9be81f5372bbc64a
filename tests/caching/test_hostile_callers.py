"""
What a cache is exposed to: signals that raise, keys that do as they please, callbacks that store again, forks.
"""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

import memguard
from memguard import LRUCache, cached
from memguard.caching import _pressure as pressure
from memguard.testing import FakeClock
from memguard.turns import Claim
from memguard.values import Level, set_default_gate

LONG = 60.0
SOURCE = str(Path(memguard.__file__).parent / "caching")
MIB = 1024**2


def sums_are_right(cache):
    len(cache)  # counts anew where a change was interrupted
    inside = cache._entries
    there = inside.there()
    return (inside.count, inside.total_bytes) == (len(there), sum(entry.size for entry in there))


class Late(Exception):
    """What a signal handler raises, of a time limit for one."""


# ----- an exception that comes in between


def interrupted_at_each_line(work, most=400):
    """Run *work* again and again, each time with an exception one line of the caches later."""
    for number in range(1, most):
        left = [number]

        def local(frame, event, argument, left=left):
            if event == "line":
                left[0] -= 1
                if left[0] == 0:
                    raise Late
            return local

        def anywhere(frame, event, argument, local=local):
            return local if frame.f_code.co_filename.startswith(SOURCE) else None

        before = sys.gettrace()
        sys.settrace(anywhere)
        try:
            work()
        except Late:
            pass
        finally:
            sys.settrace(before)
        yield number
        if left[0] > 0:
            return


@pytest.mark.parametrize(
    "options",
    [
        {"max_entries": 4},
        {"max_bytes": 40, "sizeof": len},
        {"max_entries": 4, "ttl": 100, "sizeof": len},
        {"max_entries": 4, "on_evict": lambda *gone: None, "sizeof": len},
        {"max_bytes": 40, "sizeof": len, "policy": "sieve"},
    ],
    ids=["entries", "bytes", "ages", "callback", "sieve"],
)
def test_an_exception_at_any_line_of_a_store_leaves_the_sums_right_and_the_bound_kept(options):
    cache = LRUCache(**options)
    numbers = iter(range(100_000))

    def work():
        number = next(numbers)
        cache[number % 7] = "x" * (1 + number % 20)
        cache.get((number * 3) % 7)
        cache[number % 5] = "y" * 10
        cache.pop(number % 3, None)
        cache[f"new {number}"] = "z" * 9

    for line in interrupted_at_each_line(work):
        cache["after"] = "a"
        assert cache.get("after") == "a", line
        assert sums_are_right(cache), line
        assert len(cache) <= 40
        assert cache.total_bytes <= 40 or "max_bytes" not in options
        assert list(cache)[-1] == "after"
    for number in range(50):
        cache[number] = "x" * 10
    assert list(cache)[-1] == 49
    assert len(cache) == 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that signal here")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "key", [lambda number: number % 300, lambda number: (number % 300, Odd(1))], ids=["plain", "odd"]
)
def test_time_limits_in_the_midst_of_stores_leave_the_sums_right(key):
    cache = LRUCache(max_bytes=5000, sizeof=lambda value: value)
    number, late = 0, 0

    def handler(*_):
        raise Late

    before = signal.signal(signal.SIGALRM, handler)
    try:
        while late < 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                for _ in range(5000):  # the interpreter swallows one that comes in a finalizer: then set it again
                    number += 1
                    cache[key(number)] = 10 + number % 91
            except Late:
                late += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert sums_are_right(cache)
    assert cache.total_bytes <= 5000


def test_the_time_limit_of_a_program_passes_through_a_callback_and_a_callback_s_own_error_does_not():
    def handler(*_):
        raise Late

    def callback(key, value, reason):
        if key == "limit":
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0)
        raise ValueError(key)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        cache = LRUCache(1, on_evict=callback)
        cache["error"] = 1
        cache["limit"] = 1
        with pytest.raises(Late):
            cache["other"] = 1
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert list(cache) == ["other"]


def test_sums_that_cannot_be_right_are_counted_anew():
    cache = LRUCache(max_bytes=100, sizeof=len)
    cache["a"] = "x" * 60
    cache._entries.total_bytes, cache._entries.midway = -500, True
    cache["b"] = "x" * 30

    assert cache.total_bytes == 90
    cache._entries.order.rebuild(())  # as if the order had lost them
    cache["c"] = "x" * 30
    assert (list(cache), cache.total_bytes) == (["b", "c"], 60)


# ----- keys


class Odd:
    """Its hash and comparison are Python, and other threads come in between."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return hash(self.number)

    def __eq__(self, other):
        time.sleep(0)
        return self.number == (other.number if isinstance(other, Odd) else other)


@pytest.mark.parametrize(
    "look",
    [
        lambda cache, key: cache.get(key),
        lambda cache, key: key in cache,
        lambda cache, key: cache.pop(key, None),
        lambda cache, key: cache.peek(key),
        lambda cache, key: cache.setdefault(key, 1),
    ],
    ids=["get", "in", "pop", "peek", "setdefault"],
)
@pytest.mark.parametrize("policy", ["lru", "sieve"])
def test_a_key_that_is_only_looked_up_can_be_of_any_kind(look, policy):
    cache = LRUCache(40, policy=policy)
    failed = []
    interval = sys.getswitchinterval()

    def write():
        for number in range(3000):
            cache[number % 50] = number
            if number % 500 < 3:
                cache.clear()

    def read():
        try:
            for number in range(1000):
                look(cache, Odd(number % 50))
        except Exception as error:
            failed.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for work in (write, write, read, read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    assert len(cache) <= 40
    assert sums_are_right(cache)


def test_a_comparison_may_use_the_cache():
    cache = LRUCache(3)

    class Busy(Odd):
        def __eq__(self, other):
            cache["from the comparison"] = 1
            cache.get("plain")
            return super().__eq__(other)

        __hash__ = Odd.__hash__

    for number in range(20):
        cache[Busy(number % 4)] = number
        cache.get(Busy(number % 5))
        cache.pop(Busy(number % 3), None)
    assert len(cache) <= 3
    assert sums_are_right(cache)


def test_a_comparison_that_raises_is_an_error_of_its_caller_alone():
    class Raising(Odd):
        def __eq__(self, other):
            raise RuntimeError("no")

        __hash__ = Odd.__hash__

    cache = LRUCache(2)
    cache[1] = "one"
    with pytest.raises(RuntimeError):
        cache.get(Raising(1))
    with pytest.raises(RuntimeError):
        cache[Raising(1)] = 5
    cache[2], cache[3] = "two", "three"
    assert list(cache) == [2, 3]
    assert sums_are_right(cache)


# ----- callbacks, ages, bounds


def test_a_callback_that_stores_again_ends_and_is_told_of_each():
    told = []

    def again(key, value, reason):
        told.append(key)
        cache[key] = value

    cache = LRUCache(2, on_evict=again)
    cache[1] = cache[2] = cache[3] = 0

    assert len(told) < 10
    assert len(cache) == 2
    assert cache.statistics().rejected == 1


def test_a_callback_of_two_caches_that_store_into_each_other_ends():
    first = LRUCache(1, on_evict=lambda key, value, reason: second.__setitem__(key, value))
    second = LRUCache(1, on_evict=lambda key, value, reason: first.__setitem__(key, value))
    for number in range(5):
        first[number] = number

    assert len(first) == len(second) == 1


def test_a_callback_that_clears_is_told_of_what_it_clears():
    told = []

    def clear(key, value, reason):
        told.append(key)
        cache.clear()

    cache = LRUCache(2, on_evict=clear)
    cache.update({1: 1, 2: 2, 3: 3})

    assert sorted(told) == [1, 2, 3]


def test_to_count_entries_with_ages_looks_at_those_that_are_over_and_no_others():
    clock = FakeClock()
    cache = LRUCache(100_000, ttl=100, timer=clock)
    for number in range(20_000):
        clock.advance(0.001)
        cache[number] = number
    clock.advance(90)
    assert 9_990 < len(cache) < 10_010
    calls = []

    def profile(frame, event, argument):
        calls.append(event)

    sys.setprofile(profile)
    try:
        len(cache)
    finally:
        sys.setprofile(None)
    assert len(calls) < 100


def test_entries_with_lives_of_their_own_are_over_in_their_order():
    clock = FakeClock()
    gone = []
    cache = LRUCache(100, ttl=50, timer=clock, on_evict=lambda key, value, reason: gone.append((key, reason)))
    for key, life in {"a": 30, "b": 10, "c": 20, "d": 0.001, "e": 1e9}.items():
        cache.set(key, 1, ttl=life)
    cache["f"] = 1
    cache.set("a", 1, ttl=5)  # sooner than before
    cache.set("b", 1, ttl=40)  # later
    clock.advance(100)
    cache.expire()

    expired = [key for key, reason in gone if reason == "expired"]
    assert expired == ["d", "a", "c", "b", "f"]
    assert list(cache) == ["e"]


def test_what_is_replaced_and_removed_for_ever_takes_no_room():
    clock = FakeClock()
    cache = LRUCache(10, ttl=1e6, timer=clock)
    for number in range(30_000):
        cache[number % 20] = number
        cache.pop((number + 7) % 20, None)

    held = sum(map(len, cache._entries.lists.values())) + sum(map(len, cache._entries.ages._buckets.lists.values()))
    assert held < 10_000


def test_an_entry_s_own_bound_outlives_a_smaller_one_of_the_cache():
    cache = LRUCache(max_bytes=1000, max_entry_bytes=500, sizeof=len)
    cache.resize(max_bytes=100)
    cache.resize(max_bytes=1000)
    cache["a"] = b"x" * 800
    assert "a" not in cache
    cache.resize(max_entries=5, max_bytes=None)
    cache["a"] = b"x" * 501
    cache["b"] = b"x" * 500
    assert list(cache) == ["b"]


def test_a_value_another_thread_changes_is_stored_all_the_same():
    live = {number: [number] for number in range(50)}
    cache = LRUCache(max_bytes="10 MiB")
    done = threading.Event()

    def churn():
        number = 0
        while not done.is_set():
            live[100 + number % 40] = [number]
            live.pop(100 + (number - 20) % 40, None)
            number += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(2000):
            cache["live"] = live
            cache["set"] = live.keys()
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join(LONG)
    assert cache.get("live") is live


def test_a_weak_cache_is_copied_but_neither_pickled_nor_copied_deeply():
    class Thing:
        pass

    thing = Thing()
    cache = LRUCache(3, weak_values=True)
    cache["a"] = thing

    assert copy.copy(cache)["a"] is thing
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="nobody would hold the copies"):
            refused(cache)


def test_a_copy_of_a_subclass_has_what_the_subclass_added():
    class Mine(LRUCache):
        def __init__(self):
            super().__init__(5)

    cache = Mine()
    cache.tag = "t"
    cache["a"] = 1
    twin = copy.copy(cache)

    assert (type(twin), twin.tag, twin["a"]) == (Mine, "t", 1)


# ----- event loops and forks


class Gate:
    level = Level.NORMAL

    def check(self):
        return None

    def allows(self, nbytes=0):
        return True


def test_a_store_on_an_event_loop_does_not_wait_for_the_relief_of_another():
    from memguard import default_breaker

    set_default_gate(Gate)
    cache = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: value)
    other, taken, leave = None, threading.Event(), threading.Event()

    def relieve():
        claim = Claim(pressure.relieving)
        assert claim.take()
        taken.set()
        leave.wait(LONG)
        claim.give_back()

    async def main():
        cache["a"] = 2 * MIB
        cache["b"] = 2 * MIB  # relief is still under way: it holds no more than it did
        return sorted(cache)

    try:
        other = threading.Thread(target=relieve)
        other.start()
        assert taken.wait(LONG)
        waits = []
        real, pressure.relieving.wait = pressure.relieving.wait, lambda seconds: waits.append(seconds) or True
        try:
            assert asyncio.run(main()) == ["b"]
            assert waits == []
            cache["c"] = 2 * MIB
            assert waits == [pressure._LONGEST_WAIT_SECONDS]
        finally:
            pressure.relieving.wait = real
    finally:
        leave.set()
        other.join(LONG)
        set_default_gate(default_breaker)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("mapping", ["dict", "lru"])
def test_a_forked_child_goes_on_in_a_function_whose_cache_is_in_use(mapping):
    inside, go = threading.Event(), threading.Event()
    parent = os.getpid()

    class Slow(dict):
        def __setitem__(self, key, value):
            if key == "slow" and os.getpid() == parent:
                inside.set()
                assert go.wait(LONG)
            super().__setitem__(key, value)

    def weigh(value):
        Slow()[value] = 1
        return 1

    cache = Slow() if mapping == "dict" else LRUCache(max_bytes=100, sizeof=weigh)

    @cached(cache)
    def same(x):
        return x

    thread = threading.Thread(target=same, args=("slow",))
    thread.start()
    assert inside.wait(LONG)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if (same("other"), same("slow")) == ("other", "slow") else 1)
    _, status = os.waitpid(child, 0)
    go.set()
    thread.join(LONG)
    assert status == 0


def test_a_cache_that_is_let_go_of_is_freed_at_once():
    class Value:
        pass

    cache = LRUCache(10, ttl=50)
    cache["a"] = value = Value()
    gone = weakref.ref(value)
    del value, cache

    assert gone() is None
