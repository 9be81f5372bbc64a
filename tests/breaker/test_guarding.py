from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import mmap
import threading

import pytest
from test_breaker import MIB, scripted
from test_reserving import always_later, wait_until_waiting

from memguard import MemoryCircuitBreakerError, measure_peak
from memguard.breaker._learning import CostLearner


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


@pytest.mark.parametrize(("cost", "error"), [("512m", ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_cost_that_cannot_be_meant_is_refused_where_it_is_written(cost, error):
    breaker, _, _ = scripted(0.5)
    with pytest.raises(error):
        breaker.guard(cost=cost)(plain)


def test_only_callables_are_guarded():
    breaker, _, _ = scripted(0.5)
    with pytest.raises(TypeError, match="got 5"):
        breaker.guard(5)


def test_the_first_call_of_an_unknown_cost_runs_alone():
    breaker, _, _ = scripted(0.5)
    seen = []

    @breaker.guard(cost="auto")
    def work():
        seen.append(reserved(breaker))
        with pytest.raises(MemoryCircuitBreakerError):
            contextvars.Context().run(work)

    work()

    assert seen == [150 * MIB + 1]
    assert reserved(breaker) == 0


@pytest.mark.parametrize("kind", ["plain", "coroutine", "generator", "async generator"])
def test_a_cost_is_learned_from_the_peak_of_calls(kind):
    breaker, _, _ = scripted(0.1, limit=4000 * MIB)
    seen = []

    def take():
        with mmap.mmap(-1, 64 * MIB) as block:  # never pages that the allocator had
            for _ in range(64):
                block.write(b"x" * MIB)
        seen.append(reserved(breaker) / MIB)

    if kind == "plain":
        call = breaker.guard(cost="auto")(take)
    elif kind == "coroutine":

        @breaker.guard(cost="auto")
        async def work():
            take()

        call = lambda: asyncio.run(work())  # noqa: E731
    elif kind == "generator":

        @breaker.guard(cost="auto")
        def work():
            yield take()

        call = lambda: list(work())  # noqa: E731
    else:

        @breaker.guard(cost="auto")
        async def work():
            yield take()

        async def walk():
            return [each async for each in work()]

        call = lambda: asyncio.run(walk())  # noqa: E731

    for _ in range(4):
        call()

    assert seen[0] == pytest.approx(1400, abs=1)
    assert seen[1] == pytest.approx(256, rel=0.2)
    assert seen[2] == pytest.approx(128, rel=0.2)
    assert seen[3] == pytest.approx(80, rel=0.2)
    assert reserved(breaker) == 0


def test_calls_that_run_beside_each_other_are_charged_their_share():
    learner = CostLearner()
    samples = [learner.begin() for _ in range(4)]
    with mmap.mmap(-1, 64 * MIB) as block:
        for _ in range(64):
            block.write(b"x" * MIB)
        for sample in samples:
            learner.end(sample)

    assert learner.cost.nbytes == pytest.approx(16 * MIB, rel=0.2)
    assert learner.cost.samples == 4


def test_what_fails_while_it_begins_to_measure_holds_nothing(monkeypatch):
    breaker, _, _ = scripted(0.5)

    def fail():
        raise OSError("no status file")

    monkeypatch.setattr("memguard.breaker._learning.measure_cheaply", fail)
    with pytest.raises(OSError, match="no status file"):
        breaker.guard(cost="auto")(plain)()

    assert reserved(breaker) == 0


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


def test_once_the_cost_is_learned_one_call_in_sixteen_is_measured(monkeypatch):
    monkeypatch.setattr("memguard.breaker._learning.measure_cheaply", lambda: measure_peak(meter="tracemalloc"))
    learner = CostLearner()
    measured = []
    for _ in range(33):
        sample = learner.begin()
        measured.append(sample is not None)
        learner.end(sample)

    assert [number for number, was in enumerate(measured) if was] == [*range(8), 16, 32]
    assert learner.cost.samples == 10
