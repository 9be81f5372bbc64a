from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import pickle
import threading
import time
import weakref
from collections import Counter

import cachetools
import cachetools.keys
import pytest

from memguard import CacheDeadlockError, LRUCache, cached
from memguard.testing import FakeClock

LONG = 60.0


def counting(fn=lambda *args, **kwargs: (args, tuple(sorted(kwargs.items())))):
    calls = []

    @functools.wraps(fn)
    def counted(*args, **kwargs):
        calls.append((args, kwargs))
        return fn(*args, **kwargs)

    return counted, calls


# ----- what is remembered


def test_a_result_is_computed_once():
    calls = []

    @cached
    def double(x):
        calls.append(x)
        return 2 * x

    assert [double(1), double(1), double(2), double(x=1)] == [2, 2, 4, 2]
    assert calls == [1, 2]
    assert double.cache_info() == (2, 2, 1000, 2)


def test_none_is_remembered_as_well():
    calls = []

    @cached
    def nothing(x):
        calls.append(x)

    assert [nothing(1), nothing(1)] == [None, None]
    assert calls == [1]


def test_one_call_spelt_in_different_ways_is_one_call():
    calls = []

    @cached
    def area(width, height=2, *, unit="m"):
        calls.append((width, height, unit))
        return width * height

    assert area(3) == area(3, 2) == area(width=3) == area(height=2, width=3) == area(3, unit="m") == 6
    assert calls == [(3, 2, "m")]
    area(3, unit="cm")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (lambda: "x", (), {}),
        (lambda a: a, (1,), {}),
        (lambda a, /: a, (1,), {}),
        (lambda a, /, b: (a, b), (1, 2), {}),
        (lambda a, /, b, *, c: (a, b, c), (1, 2), {"c": 3}),
        (lambda *, c: c, (), {"c": 3}),
        (lambda *args: args, (1, 2), {}),
        (lambda **kwargs: kwargs, (), {"x": 1, "y": 2}),
        (lambda a, *args, b=5, **kwargs: (a, args, b, kwargs), (1, 2, 3), {"b": 6, "z": 7}),
    ],
)
def test_every_kind_of_signature_is_passed_on_and_remembered(fn, args, kwargs):
    calls = Counter()

    def counted(*args, **kwargs):
        calls["all"] += 1
        return fn(*args, **kwargs)

    counted.__signature__ = inspect.signature(fn)
    remembered = cached(counted)

    assert remembered(*args, **kwargs) == remembered(*args, **kwargs) == fn(*args, **kwargs)
    assert calls["all"] == 1
    assert remembered.invalidate(*args, **kwargs)
    assert remembered(*args, **kwargs) == fn(*args, **kwargs)
    assert calls["all"] == 2


def test_a_wrong_call_fails_as_it_would_without():
    @cached
    def double(x):
        return 2 * x

    with pytest.raises(TypeError):
        double()
    with pytest.raises(TypeError):
        double(1, 2)
    with pytest.raises(TypeError, match="unhashable"):
        double([])


def test_what_inspect_says_of_the_function_stays_true():
    @cached(max_entries=5)
    async def wait(x: int, y: str = "z") -> str:
        """Wait."""
        return y * x

    assert inspect.iscoroutinefunction(wait)
    assert (wait.__name__, wait.__doc__, list(inspect.signature(wait).parameters)) == ("wait", "Wait.", ["x", "y"])
    assert inspect.signature(wait).parameters["y"].default == "z"


def test_the_bounds_are_those_of_the_cache():
    @cached(max_entries=2, max_bytes="1 MiB", ttl=60)
    def double(x):
        return 2 * x

    for x in range(5):
        double(x)

    assert len(double.cache) == 2
    assert (double.cache.max_entries, double.cache.max_bytes) == (2, 1024**2)
    assert cached(max_bytes=1000)(len).cache.max_entries is None


def test_a_result_is_computed_anew_when_it_is_too_old():
    clock = FakeClock()
    calls = []
    cache = LRUCache(10, ttl=60, timer=clock)

    @cached(cache)
    def now(x):
        calls.append(x)
        return len(calls)

    assert [now(1), now(1)] == [1, 1]
    clock.advance(61)
    assert now(1) == 2


def test_a_cache_that_begins_to_keep_ages_is_gone_by():
    clock = FakeClock()
    calls = []
    cache = LRUCache(10, timer=clock)

    @cached(cache)
    def double(x):
        calls.append(x)
        return 2 * x

    double(1)
    cache.set(2, 4, ttl=5)
    assert double(2) == 4
    clock.advance(6)
    double(2)
    assert double(1) == 2
    assert calls == [1, 2]


def test_arguments_whose_hash_is_written_in_python_are_remembered():
    class Odd(int):
        def __hash__(self):
            return 7

        def __eq__(self, other):
            return int(self) == int(other)

    calls = []

    @cached
    def double(x):
        calls.append(x)
        return 2 * x

    assert [double(1), double(Odd(2)), double(Odd(2)), double(1)] == [2, 4, 4, 2]
    assert len(calls) == 2


def test_results_can_be_forgotten():
    calls = []

    @cached
    def double(x):
        calls.append(x)
        return 2 * x

    double(1), double(2)
    assert double.invalidate(1)
    assert not double.invalidate(7)
    double(1), double(2)
    assert calls == [1, 2, 1]
    double.cache_clear()
    double(2)
    assert calls == [1, 2, 1, 2]


def test_a_key_of_ones_own_says_which_calls_are_one():
    calls = []

    @cached(key=len)
    def total(rows):
        calls.append(rows)
        return sum(rows)

    @cached(key=len)
    async def atotal(rows):
        calls.append(rows)
        return sum(rows)

    assert [total([1, 2]), total([5, 5])] == [3, 3]
    assert [asyncio.run(atotal([1, 2])), asyncio.run(atotal([5, 5]))] == [3, 3]
    assert calls == [[1, 2], [1, 2]]
    assert total.invalidate([0, 0])


def test_a_cache_of_cachetools_will_do():
    calls = []
    cache = cachetools.LRUCache(2, getsizeof=len)

    @cached(cache, key=cachetools.keys.hashkey)
    def text(x):
        calls.append(x)
        return "x" * x

    assert [text(1), text(1), text(5), text(5)] == ["x", "x", "xxxxx", "xxxxx"]
    assert calls == [1, 5, 5]  # the second is larger than the cache
    assert text.cache_info() == (1, 3, 2, 1)
    assert text.invalidate(1)
    text.cache_clear()
    assert cached({})(len).cache_info() == (0, 0, None, 0)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: cached(LRUCache(5), ttl=5), "not both"),
        (lambda: cached([]), "mutable mapping"),
        (lambda: cached(max_entries=5)(7), "got 7"),
        (lambda: cached(key=7)(len), "key is a callable"),
        (lambda: cached(lambda: (yield)), "generator function"),
    ],
)
def test_nonsense_is_refused(use, words):
    with pytest.raises(TypeError, match=words):
        use()


# ----- methods


class Service:
    made = 0

    def __init__(self, factor):
        self.factor = factor
        self.calls = []

    @cached
    def times(self, x):
        self.calls.append(x)
        return self.factor * x

    @cached(max_entries=10)
    async def atimes(self, x):
        self.calls.append(x)
        return self.factor * x

    @staticmethod
    @cached
    def add(x, y):
        Service.made += 1
        return x + y

    @classmethod
    @cached
    def name(cls, x):
        Service.made += 1
        return f"{cls.__name__} {x}"

    @property
    @cached
    def slow(self):
        self.calls.append("slow")
        return self.factor

    def __eq__(self, other):  # so it has no hash
        return True

    __hash__ = None


def test_each_object_has_results_of_its_own():
    two, three = Service(2), Service(3)

    assert [two.times(5), three.times(5), two.times(5)] == [10, 15, 10]
    assert [two.slow, two.slow] == [2, 2]
    assert asyncio.run(two.atimes(1)) == asyncio.run(two.atimes(1)) == 2
    assert two.calls == [5, "slow", 1]


def test_static_and_class_methods_are_remembered_too():
    before = Service.made

    assert [Service.add(1, 2), Service(1).add(1, 2), Service.name(1), Service.name(1)] == [
        3,
        3,
        "Service 1",
        "Service 1",
    ]
    assert Service.made == before + 2


def test_an_object_is_not_held_and_its_results_go_with_it():
    Service.times.cache_clear()
    kept = Service(1)
    kept.times(1)
    for number in range(20):
        service = Service(number)
        service.times(5)
    gone = weakref.ref(service)
    del service
    gc.collect()
    kept.times(2)
    Service(0).times(1)

    assert gone() is None
    assert len(Service.times.cache) <= 4
    assert kept.calls == [1, 2]


def test_an_object_that_takes_no_weak_reference_is_held_but_works():
    class Slim:
        __slots__ = ("x",)

        def __init__(self, x):
            self.x = x

        @cached
        def times(self, y):
            return self.x * y

    assert Slim(2).times(3) == 6


def test_the_result_for_one_object_can_be_forgotten():
    service = Service(2)
    service.times(5)

    assert Service.times.invalidate(service, 5)
    service.times(5)
    assert service.calls == [5, 5]


# ----- one computation, many callers: threads


def in_threads(count, call):
    results = []

    def run():
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def join(threads):
    for thread in threads:
        thread.join(LONG)
    assert not [thread for thread in threads if thread.is_alive()]


def waiting_for(fn, count):
    """Wait until *count* threads wait for a computation."""
    from memguard.caching import _flight

    deadline = time.monotonic() + LONG
    while len(_flight._waiting_threads) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(_flight._waiting_threads) == count


def test_a_hundred_threads_that_ask_for_one_missing_key_run_the_function_once():
    calls, go = [], threading.Event()

    @cached
    def slow(x):
        calls.append(x)
        assert go.wait(LONG)
        return object()

    threads, results = in_threads(100, lambda: slow(1))
    waiting_for(slow, 99)
    go.set()
    join(threads)

    assert calls == [1]
    assert len(set(map(id, results))) == 1


def test_an_error_is_raised_to_all_who_waited_and_not_kept():
    calls, go = [], threading.Event()

    @cached
    def fails(x):
        calls.append(x)
        assert go.wait(LONG)
        raise ValueError("no")

    threads, results = in_threads(10, lambda: fails(1))
    waiting_for(fails, 9)
    go.set()
    join(threads)

    assert [type(each) for each in results] == [ValueError] * 10
    assert calls == [1]
    with pytest.raises(ValueError, match="no"):
        fails(1)
    assert calls == [1, 1]


def test_who_is_interrupted_while_computing_fails_alone():
    calls, go = [], threading.Event()

    @cached
    def slow(x):
        calls.append(x)
        if len(calls) == 1:
            assert go.wait(LONG)
            raise KeyboardInterrupt
        return "computed"

    def first():
        with pytest.raises(KeyboardInterrupt):
            slow(1)

    leader = threading.Thread(target=first)
    leader.start()
    while not calls:
        time.sleep(0.001)
    threads, results = in_threads(5, lambda: slow(1))
    waiting_for(slow, 5)
    go.set()
    join([leader, *threads])

    assert results == ["computed"] * 5
    assert calls == [1, 1]


def test_a_function_that_calls_itself_with_the_same_key_gets_an_error_instead_of_a_deadlock():
    @cached
    def endless(x):
        return endless(x)

    with pytest.raises(CacheDeadlockError, match="endless called itself with the same arguments"):
        endless(1)


def test_recursion_with_other_keys_is_fine():
    @cached
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(80) == 23416728348467685


def test_two_threads_that_wait_for_each_other_get_an_error():
    both = threading.Barrier(2)

    @cached
    def other(x):
        both.wait(LONG)
        return other(1 - x)

    threads, results = in_threads(1, lambda: other(0))
    more, others = in_threads(1, lambda: other(1))
    join(threads + more)

    assert {type(each) for each in results + others} == {CacheDeadlockError}


def test_the_error_survives_the_trip_from_a_worker():
    error = pickle.loads(pickle.dumps(CacheDeadlockError("f", False)))

    assert "f waits for a caller that waits for it" in str(error)


def test_what_is_invalidated_while_it_is_computed_is_not_kept():
    calls, inside, go = [], threading.Event(), threading.Event()

    @cached
    def slow(x):
        calls.append(x)
        inside.set()
        assert go.wait(LONG)
        return len(calls)

    threads, results = in_threads(1, lambda: slow(1))
    assert inside.wait(LONG)
    slow.invalidate(1)
    go.set()
    join(threads)

    assert results == [1]
    assert slow(1) == 2
    slow.cache_clear()
    assert slow(1) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_computation_that_it_does_not_have():
    inside, go = threading.Event(), threading.Event()
    parent = os.getpid()

    @cached
    def slow(x):
        if os.getpid() == parent:
            inside.set()
            assert go.wait(LONG)
        return 7

    threads, results = in_threads(1, lambda: slow(1))
    assert inside.wait(LONG)
    child = os.fork()
    if child == 0:
        os._exit(slow(1))
    _, status = os.waitpid(child, 0)
    go.set()
    join(threads)

    assert os.waitstatus_to_exitcode(status) == 7
    assert results == [7]


# ----- one computation, many callers: tasks


def test_a_thousand_tasks_that_ask_for_one_missing_key_run_the_function_once():
    calls = []

    @cached
    async def slow(x):
        calls.append(x)
        await asyncio.sleep(0.01)
        return object()

    async def main():
        return await asyncio.gather(*(slow(1) for _ in range(1000)))

    assert len(set(map(id, asyncio.run(main())))) == 1
    assert calls == [1]
    assert slow.cache_info()[:2] == (0, 1000)


def test_cancelling_the_one_that_computes_fails_nobody_else():
    calls = []

    async def main():
        go = asyncio.Event()

        @cached
        async def slow(x):
            calls.append(x)
            await go.wait()
            return "computed"

        tasks = [asyncio.create_task(slow(1)) for _ in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())

    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == ["computed"] * 9
    assert calls == [1, 1]


def test_cancelling_one_that_waits_fails_nobody_else():
    async def main():
        go = asyncio.Event()

        @cached
        async def slow(x):
            await go.wait()
            return "computed"

        tasks = [asyncio.create_task(slow(1)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())

    assert [type(each).__name__ for each in results] == ["str", "str", "CancelledError", "str", "str"]


def test_an_error_of_a_coroutine_is_raised_to_all_and_not_kept():
    calls = []

    @cached
    async def fails(x):
        calls.append(x)
        await asyncio.sleep(0)
        raise ValueError("no")

    async def main():
        return await asyncio.gather(*(fails(1) for _ in range(5)), return_exceptions=True)

    assert [type(each) for each in asyncio.run(main())] == [ValueError] * 5
    assert [type(each) for each in asyncio.run(main())] == [ValueError] * 5
    assert calls == [1, 1]


def test_a_coroutine_function_that_calls_itself_with_the_same_key_gets_an_error():
    @cached
    async def endless(x):
        return await endless(x)

    @cached
    async def other(x):
        await asyncio.sleep(0)
        return await other(1 - x)

    async def both():
        return await asyncio.gather(other(0), other(1), return_exceptions=True)

    with pytest.raises(CacheDeadlockError, match="same arguments"):
        asyncio.run(endless(1))
    assert CacheDeadlockError in {type(each) for each in asyncio.run(both())}


def test_results_outlive_the_loop_that_computed_them():
    calls = []

    @cached
    async def double(x):
        calls.append(x)
        return 2 * x

    assert asyncio.run(double(1)) == asyncio.run(double(1)) == 2
    assert calls == [1]


def test_what_is_invalidated_while_a_coroutine_computes_it_is_not_kept():
    calls = []

    async def main():
        go = asyncio.Event()

        @cached
        async def slow(x):
            calls.append(x)
            await go.wait()
            return len(calls)

        task = asyncio.create_task(slow(1))
        await asyncio.sleep(0)
        slow.invalidate(1)
        go.set()
        first = await task
        second = await slow(1)
        slow.cache_clear()
        return first, second, await slow(1)

    assert asyncio.run(main()) == (1, 2, 3)


def test_awrapped_with_weak_values_or_a_subclass_still_remembers():
    class Mine(LRUCache):
        pass

    class Result:
        pass

    kept = []
    for cache in (LRUCache(10, weak_values=True), Mine(10)):

        @cached(cache)
        def make(x):
            kept.append(Result())
            return kept[-1]

        assert make(1) is make(1)
    assert len(kept) == 2
