from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import sys
import threading
import warnings
import weakref

import pytest
from test_breaker import MIB, scripted
from test_reserving import always_later, wait_until_waiting

from memguard import MemoryCircuitBreakerError


def plain(x=1):
    return x


async def coroutine(x=1):
    return x


def generator(x=1):
    got = yield x
    try:
        yield got
    except KeyError:
        yield "caught"
    return "end"


async def async_generator(x=1):
    got = yield x
    try:
        yield got
    except KeyError:
        yield "caught"


class AsyncCall:
    async def __call__(self, x=1):
        return x


def reserved(breaker):
    return breaker.statistics().reserved_bytes


@pytest.mark.parametrize("fn", [plain, coroutine, generator, async_generator])
@pytest.mark.parametrize("cost", [None, "10 MiB"])
def test_what_inspect_says_stays_true(fn, cost):
    breaker, _, _ = scripted(0.5)
    wrapped = breaker.guard(cost=cost)(fn)

    for question in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
        inspect.signature,
    ):
        assert question(wrapped) == question(fn)
    assert wrapped.__name__ == fn.__name__


def test_a_plain_function_is_admitted_and_its_cost_held():
    breaker, sampler, _ = scripted(0.5)
    seen = []

    @breaker.guard(cost=lambda n: n * MIB)
    def work(n):
        seen.append(reserved(breaker))
        return n

    assert work(7) == 7
    assert seen == [7 * MIB]
    assert reserved(breaker) == 0
    with pytest.raises(MemoryCircuitBreakerError):
        work(301)


def test_without_parentheses_it_checks_only():
    breaker, sampler, _ = scripted(0.5)
    guarded = breaker.guard(plain)
    assert guarded(3) == 3

    sampler.then(0.9)
    breaker.tick()
    with pytest.raises(MemoryCircuitBreakerError):
        guarded(3)


def test_a_method_is_guarded_like_a_function():
    breaker, _, _ = scripted(0.5)

    class Service:
        @breaker.guard(cost=MIB)
        def work(self, x):
            return self, x

    service = Service()
    assert service.work(1) == (service, 1)


@pytest.mark.parametrize(
    "fn", [coroutine, functools.partial(coroutine, 1), AsyncCall(), functools.partial(AsyncCall())]
)
def test_async_callables_of_every_form_hold_their_bytes_while_they_run(fn):
    breaker, _, _ = scripted(0.5)
    seen = []

    async def spy(x=1):
        seen.append(reserved(breaker))
        return await fn()

    class Spy:
        async def __call__(self):
            return await spy()

    async def main():
        assert await breaker.guard(cost=MIB)(Spy())() == 1
        assert await breaker.guard(cost=MIB)(functools.partial(spy, 1))() == 1
        assert await breaker.guard(cost=MIB)(fn)() == 1

    asyncio.run(main())

    assert seen == [MIB, MIB]
    assert reserved(breaker) == 0


def test_a_generator_is_admitted_at_its_first_step_and_holds_until_it_ends():
    breaker, _, _ = scripted(0.5)
    steps = breaker.guard(cost=MIB)(generator)(5)
    assert reserved(breaker) == 0

    assert next(steps) == 5
    assert reserved(breaker) == MIB
    assert steps.send("sent") == "sent"
    assert steps.throw(KeyError) == "caught"
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "end"
    assert reserved(breaker) == 0


def test_a_closed_generator_gives_its_bytes_back_and_closes_the_inner_one():
    breaker, _, _ = scripted(0.5)
    closed = []

    @breaker.guard(cost=MIB)
    def work():
        try:
            yield 1
        finally:
            closed.append(1)

    steps = work()
    next(steps)
    steps.close()

    assert (closed, reserved(breaker)) == ([1], 0)


def test_a_callers_own_reservation_is_not_nested_in_a_suspended_generator():
    breaker, _, _ = scripted(0.5)
    seen = []

    @breaker.guard(cost=10 * MIB)
    def work():
        with breaker.reserve(4 * MIB):
            seen.append(reserved(breaker))
        yield 1

    steps = work()
    next(steps)
    assert seen == [10 * MIB]
    with breaker.reserve(10 * MIB):
        assert reserved(breaker) == 20 * MIB
    steps.close()


def test_an_async_generator_forwards_everything_and_holds_until_it_ends():
    breaker, _, _ = scripted(0.5)

    async def main():
        steps = breaker.guard(cost=MIB)(async_generator)(5)
        assert reserved(breaker) == 0
        assert await anext(steps) == 5
        assert reserved(breaker) == MIB
        assert await steps.asend("sent") == "sent"
        assert await steps.athrow(KeyError()) == "caught"
        with pytest.raises(StopAsyncIteration):
            await anext(steps)
        assert reserved(breaker) == 0

        closing = breaker.guard(cost=MIB)(async_generator)(5)
        await anext(closing)
        await closing.aclose()
        assert reserved(breaker) == 0

    asyncio.run(main())


def test_a_refused_coroutine_is_never_created():
    breaker, _, _ = scripted(0.9)
    breaker.tick()
    called = []

    async def work():
        called.append(1)

    async def main():
        with pytest.raises(MemoryCircuitBreakerError):
            await breaker.guard(work)()

    asyncio.run(main())

    assert called == []


@pytest.mark.parametrize(
    ("cost", "error"),
    [("512m", ValueError), (-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), (True, TypeError)],
)
def test_a_cost_that_cannot_be_meant_is_refused_where_it_is_written(cost, error):
    breaker, _, _ = scripted(0.5)
    with pytest.raises(error):
        breaker.guard(cost=cost)(plain)


def test_only_callables_are_guarded():
    breaker, _, _ = scripted(0.5)
    with pytest.raises(TypeError, match="got 5"):
        breaker.guard(5)


def test_a_guard_may_wait_for_ever():
    breaker, sampler, _ = scripted(0.9, clock=always_later())
    breaker.tick()
    guarded = breaker.guard(timeout=None)(plain)
    thread_result = []
    thread = threading.Thread(target=lambda: thread_result.append(guarded(3)))
    thread.start()
    wait_until_waiting(breaker, 1)

    sampler.then(0.3)
    thread.join(30)

    assert thread_result == [3]


def test_a_cost_that_was_computed_is_rounded_up():
    breaker, _, _ = scripted(0.5)
    seen = []
    breaker.guard(cost=lambda n: n * 1.5)(lambda n: seen.append(reserved(breaker)))(3)
    assert seen == [5]


async def _later(breaker, seen):
    seen.append(reserved(breaker))
    await asyncio.sleep(0)
    with breaker.reserve(MIB):
        seen.append(reserved(breaker))
    return "done"


class Odd:
    @staticmethod
    async def static(breaker, seen):
        return await _later(breaker, seen)

    @classmethod
    async def of_class(cls, breaker, seen):
        return await _later(breaker, seen)


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(lambda *args: _later(*args), id="a lambda around an async function"),  # noqa: PLW0108
        pytest.param(lambda breaker, seen: asyncio.ensure_future(_later(breaker, seen)), id="one that returns a task"),
        pytest.param(staticmethod(_later).__wrapped__, id="the function of a staticmethod"),
        pytest.param(functools.partial(_later), id="a partial of an async function"),
    ],
)
def test_async_in_disguise_is_held_until_it_is_over(fn):
    breaker, _, _ = scripted(0.5)
    seen = []

    async def main():
        begun = breaker.guard(cost=10 * MIB)(fn)(breaker, seen)
        await asyncio.sleep(0)
        assert reserved(breaker) in (0, 10 * MIB)
        assert await begun == "done"
        await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [10 * MIB, 10 * MIB]
    assert reserved(breaker) == 0


def test_static_and_class_methods_stay_what_they_are():
    breaker, _, _ = scripted(0.5)
    seen = []

    class Guarded:
        static = breaker.guard(cost=10 * MIB)(Odd.__dict__["static"])
        of_class = breaker.guard(cost=10 * MIB)(Odd.__dict__["of_class"])

    async def main():
        await Guarded.static(breaker, seen)
        await Guarded().of_class(breaker, seen)

    asyncio.run(main())
    assert seen == [10 * MIB] * 4
    assert reserved(breaker) == 0


def test_a_generator_in_disguise_is_held_until_it_is_exhausted():
    breaker, _, _ = scripted(0.5)
    rows = breaker.guard(cost=10 * MIB)(lambda n: (each for each in range(n)))(3)
    assert next(rows) == 0
    assert reserved(breaker) == 10 * MIB
    with breaker.reserve(MIB):
        assert reserved(breaker) == 11 * MIB
    assert list(rows) == [1, 2]
    assert reserved(breaker) == 0


def test_a_coroutine_in_disguise_that_is_never_awaited_holds_nothing():
    breaker, _, _ = scripted(0.5)
    begun = breaker.guard(cost=10 * MIB)(lambda seen: _later(breaker, seen))([])
    assert reserved(breaker) == 10 * MIB
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own: it was never awaited
        del begun
        gc.collect()
    assert reserved(breaker) == 0


class Big:
    """Stands for what failed work held."""


def test_a_generator_that_goes_on_keeps_no_error_that_was_thrown_into_it():
    breaker, _, _ = scripted(0.5)

    @breaker.guard(cost=MIB)
    def rows():
        while True:
            with contextlib.suppress(KeyError):
                yield 1

    def fail():
        big = Big()
        alive.append(weakref.ref(big))
        raise KeyError

    alive, steps = [], rows()
    next(steps)
    try:
        fail()
    except KeyError as error:
        steps.throw(error)
    gc.collect()

    assert alive[0]() is None
    steps.close()


def test_a_returned_generator_that_was_begun_stays_the_one_it_is():
    breaker, _, _ = scripted(0.5)
    steps = plain_echo()
    next(steps)

    kept = [steps]
    assert breaker.guard(cost=10 * MIB)(kept.pop)() is steps
    assert steps.send("on") == "on"
    assert reserved(breaker) == 10 * MIB
    del steps
    gc.collect()
    assert reserved(breaker) == 0


def plain_echo():
    sent = None
    while True:
        try:
            sent = yield sent
        except GeneratorExit:
            return "closed"


def test_closing_a_guarded_generator_returns_what_the_generator_returned():
    breaker, _, _ = scripted(0.5)
    steps = breaker.guard(cost=MIB)(plain_echo)()
    next(steps)
    assert steps.close() == ("closed" if sys.version_info >= (3, 13) else None)
    assert reserved(breaker) == 0
