"""
Whatever a program calls its parameters, and however it reaches a cached function: as a method, through the class, bare.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import pickle
import threading
import weakref

import pytest

from memguard import CacheDeadlockError, LRUCache, cached

LONG = 60.0
NAMES = ["value", "key", "default", "tuple", "sorted", "type", "entry", "data", "cache", "get", "miss", "MISSING"]
NAMES += [
    "wrapper",
    "make_key",
    "_memguard_key",
    "_memguard__value",
    "AttributeError",
    "TypeError",
    "KeyError",
    "plain",
]


# ----- names of the program's


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("template", ["{n}", "{n}=5", "*{n}", "**{n}", "a, *, {n}=5", "a=1, /, *{n}, b=2"])
def test_a_parameter_may_have_any_name(name, template):
    space = {}
    exec(f"def f({template.format(n=name)}): return {name}", space)
    f = space["f"]
    remembered = cached(f)
    calls = [((3,), {}), ((), {}), ((3, 4), {}), ((1,), {name: 7}), ((), {name: 8, "z": 9})]
    for args, kwargs in calls:
        try:
            expected = f(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError):
                remembered(*args, **kwargs)
        else:
            assert remembered(*args, **kwargs) == remembered(*args, **kwargs) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_coroutine_function_and_a_cache_of_another_kind_as_well(name):
    space = {}
    exec(f"async def f({name}, other=None): return {name}\ndef g({name}): return {name}", space)
    assert asyncio.run(cached(space["f"])("x")) == "x"
    assert cached({})(space["g"])("x") == cached(max_bytes="1 MiB")(space["g"])("x") == "x"


def test_names_in_another_order_are_another_call_to_a_function_that_takes_any():
    @cached
    def names(**kwargs):
        return list(kwargs)

    assert (names(a=1, b=2), names(b=2, a=1), names(a=1, b=2)) == (["a", "b"], ["b", "a"], ["a", "b"])


# ----- self or not


class Shop:
    def __init__(self, factor):
        self.factor = factor

    @cached
    def price(self, number, tax=1):
        return self.factor * number * tax

    @cached
    async def aprice(self, number, tax=1):
        return self.factor * number * tax

    @staticmethod
    @cached
    def total(values):
        return sum(values)

    @classmethod
    @cached
    def named(cls, number):
        return f"{cls.__name__} {number}"

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


def test_the_result_of_one_object_is_forgotten_through_it_or_the_class():
    two, three = Shop(2), Shop(3)
    assert (two.price(5), three.price(5), Shop.price(two, 5)) == (10, 15, 10)

    assert two.price.invalidate(5)
    assert not two.price.invalidate(5, 1)  # the same call, with its default
    assert three.price.invalidate(number=5)
    two.price(5)
    assert Shop.price.invalidate(two, 5, tax=1)
    assert asyncio.run(two.aprice(5)) == 10
    assert two.aprice.invalidate(5)


def test_a_bound_method_is_what_a_method_is():
    shop = Shop(2)

    assert (shop.price.__name__, shop.price.__self__, shop.price.__func__) == ("price", shop, Shop.price)
    assert list(inspect.signature(shop.price).parameters) == ["number", "tax"]
    assert list(inspect.signature(Shop.price).parameters) == ["self", "number", "tax"]
    assert inspect.iscoroutinefunction(shop.aprice)
    assert shop.price == shop.price != Shop(2).price
    assert {shop.price: 1}[shop.price] == 1
    assert shop.price.cache is Shop.price.cache
    assert "price" in repr(shop.price)
    assert pickle.loads(pickle.dumps(module_level)) is module_level is copy.copy(module_level)
    assert copy.deepcopy(module_level) is module_level


@cached
def module_level(x):
    return x


def test_a_static_method_takes_its_first_argument_as_it_is():
    with pytest.raises(TypeError, match="unhashable"):
        Shop.total({1, 2})
    assert Shop.total((1, 2)) == Shop(1).total((1, 2)) == 3
    assert Shop.total.invalidate((1, 2))


def test_a_function_that_a_class_has_as_an_attribute_is_the_same_function_elsewhere():
    calls = []

    @cached
    def double(x, y=0):
        calls.append(x)
        return (x, y)

    class Holder:
        twice = double

    holder = Holder()
    assert holder.twice(5) == (holder, 5)
    assert double(frozenset({1})) == double(frozenset({1})) == (frozenset({1}), 0)
    assert len(calls) == 2
    assert holder.twice.invalidate(5)


def test_a_class_inside_of_a_function_is_a_class():
    def make():
        class Inner:
            @cached
            def me(self):
                return self

        return Inner()

    inner = make()
    assert inner.me() is inner
    assert len(type(inner).me.cache) == 1

    def outer():
        @cached
        def nested(value):
            return list(value)

        return nested

    assert outer()((1, 2)) == [1, 2]
    with pytest.raises(TypeError):
        outer()([1, 2])


def test_objects_that_are_equal_have_results_of_their_own_and_are_not_held():
    two, three = Shop(2), Shop(3)
    assert (two == three, two.price(7), three.price(7)) == (True, 14, 21)
    gone = weakref.ref(two)
    del two
    gc.collect()
    assert gone() is None


def test_a_property_and_a_method_of_a_slotted_class_are_remembered():
    class Slotted:
        __slots__ = ("calls",)

        def __init__(self):
            self.calls = 0

        @property
        @cached
        def slow(self):
            self.calls += 1
            return self.calls

        __hash__ = None

        def __eq__(self, other):
            return True

    class Weak(Slotted):
        __slots__ = ("__weakref__",)

    one = Weak()
    assert (one.slow, one.slow, Weak().slow) == (1, 1, 1)


def test_threads_that_call_a_method_of_a_new_object_first_compute_it_once():
    calls, go = [], threading.Event()

    class Slow:
        @cached
        def work(self):
            calls.append(self)
            assert go.wait(LONG)
            return 7

    for _ in range(20):
        calls.clear()
        go.clear()
        slow, results = Slow(), []
        barrier = threading.Barrier(5)

        def run(slow=slow, results=results, barrier=barrier):
            barrier.wait(LONG)
            results.append(slow.work())

        threads = [threading.Thread(target=run) for _ in range(5)]
        for thread in threads:
            thread.start()
        while not calls:
            pass
        go.set()
        for thread in threads:
            thread.join(LONG)
        assert (len(calls), results) == (1, [7] * 5)


# ----- circles of tasks


async def by_gather(call):
    return (await asyncio.gather(call))[0]


async def by_wait_for(call):
    return await asyncio.wait_for(call, LONG)


async def by_wait(call):
    done, _ = await asyncio.wait([asyncio.ensure_future(call)])
    return done.pop().result()


async def by_group(call):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call)
    return task.result()


async def by_shield(call):
    return await asyncio.shield(call)


async def by_task(call):
    return await asyncio.create_task(call)


async def by_tasks_in_tasks(call):
    return await by_gather(by_group(by_wait(call)))


ways = pytest.mark.parametrize(
    "way", [by_gather, by_wait_for, by_wait, by_group, by_shield, by_task, by_tasks_in_tasks]
)


@ways
def test_a_circle_through_child_tasks_is_an_error_instead_of_a_deadlock(way):
    @cached
    async def a(x):
        return await way(b(x))

    @cached
    async def b(x):
        return await way(a(x))

    async def main():
        async with asyncio.timeout(LONG):
            return await a(1)

    with pytest.raises((CacheDeadlockError, ExceptionGroup)) as caught:
        asyncio.run(main())
    assert "CacheDeadlockError" in repr(caught.value)


@ways
def test_a_child_task_may_ask_for_what_another_task_computes(way):
    async def main():
        go = asyncio.Event()

        @cached
        async def slow(x):
            await go.wait()
            return x

        @cached
        async def outer(x):
            return await way(slow(x))

        tasks = [asyncio.create_task(outer(1)), asyncio.create_task(slow(1)), asyncio.create_task(outer(1))]
        for _ in range(10):
            await asyncio.sleep(0)
        go.set()
        async with asyncio.timeout(LONG):
            return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [1, 1, 1]


def test_a_task_in_the_background_may_wait_for_the_one_that_began_it():
    async def main():
        began = []

        @cached
        async def first(x):
            began.append(asyncio.create_task(second(x)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return x

        async def second(x):
            return await first(x) + 1

        async with asyncio.timeout(LONG):
            return await first(1), await began[0]

    assert asyncio.run(main()) == (1, 2)


# ----- errors


class Picky(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


@pytest.mark.parametrize("make", [lambda: ValueError("no"), lambda: Picky(code=5), lambda: OSError(2, "gone", "file")])
def test_each_task_that_waited_gets_an_error_of_its_own(make):
    @cached
    async def fails(x):
        await asyncio.sleep(0)
        raise make()

    async def main():
        return await asyncio.gather(*(fails(1) for _ in range(50)), return_exceptions=True)

    errors = asyncio.run(main())

    assert len(set(map(id, errors))) == 50
    assert {(type(error), str(error), str(vars(error))) for error in errors} == {
        (type(make()), str(make()), str(vars(make())))
    }
    lengths = []
    for error in errors:
        length, traceback = 0, error.__traceback__
        while traceback is not None:
            length, traceback = length + 1, traceback.tb_next
        lengths.append(length)
    assert max(lengths) < 10


def test_nothing_of_a_failed_call_stays_alive():
    class Large:
        pass

    kept = []

    def fails(x):
        large = Large()
        kept.append(weakref.ref(large))
        raise ValueError(x)

    async def afails(x):
        fails(x)

    remembered = cached(afails)
    gc.disable()
    try:
        for call in (cached(fails), lambda x: asyncio.run(remembered(x))):
            with contextlib.suppress(ValueError):
                call(1)
        assert kept[0]() is None
        gc.collect()
        assert kept[1]() is None
    finally:
        gc.enable()


def test_partials_of_a_cached_function_remember():
    calls = []

    @cached
    def add(x, y):
        calls.append(x)
        return x + y

    assert functools.partial(add, 1)(2) == functools.partial(add, 1)(y=2) == 3
    assert calls == [1]
    assert isinstance(add.cache, LRUCache)
