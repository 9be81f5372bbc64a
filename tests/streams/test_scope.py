"""
Chunks that run at once are siblings: each books its own bytes, and its function draws from these.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest
from purse import SCOPE, PlainPurse, Purse

from memguard import MemoryCircuitBreaker, aprocess_in_chunks, process_in_chunks
from memguard.testing import ScriptedSampler

MIB = 1 << 20
SOON = 30.0


def scope_of(chunk):
    return SCOPE.get()


async def ascope_of(chunk):
    await asyncio.sleep(0)
    return SCOPE.get()


def threads(items, fn, **options):
    with ThreadPoolExecutor(2) as pool:
        return process_in_chunks(items, fn, executor=pool, concurrency=2, **options)


def slices(items, fn, **options):
    return asyncio.run(aprocess_in_chunks(items, fn, max_block=None, **options))


def tasks(items, fn, **options):
    work = ascope_of if fn is scope_of else fn
    return asyncio.run(aprocess_in_chunks(items, work, concurrency=2, **options))


def threads_on_a_loop(items, fn, **options):
    async def main():
        with ThreadPoolExecutor(2) as pool:
            return await aprocess_in_chunks(items, fn, executor=pool, concurrency=2, **options)

    return asyncio.run(main())


FORMS = [process_in_chunks, threads, slices, tasks, threads_on_a_loop]


@pytest.mark.parametrize("run", FORMS)
def test_a_function_runs_in_the_scope_of_its_own_chunk(run):
    report = run(range(40), scope_of, chunk_size=10, max_bytes=1000, breaker=Purse())

    assert None not in report.results
    assert len(set(report.results)) == 4
    assert SCOPE.get() is None


@pytest.mark.parametrize("run", FORMS)
def test_a_gate_without_scopes_will_do(run):
    purse = PlainPurse()
    report = run(range(40), scope_of, chunk_size=10, max_bytes=1000, breaker=purse)

    assert report.results == [None] * 4
    assert purse.out == 0


@pytest.mark.parametrize("run", FORMS)
def test_the_source_is_no_child_of_a_chunk(run):
    seen = set()

    def source():
        for number in range(40):
            seen.add(SCOPE.get())
            yield number

    run(source(), scope_of, chunk_size=10, max_bytes=1000, breaker=Purse())

    assert seen == {None}


class Pickling(Executor):
    """Stands for a process pool: what it takes has to travel."""

    def submit(self, fn, /, *args):
        future = Future()
        travelled, arguments = pickle.loads(pickle.dumps((fn, args)))
        future.set_result(travelled(*arguments))
        return future


@pytest.mark.parametrize("name", ["of its own kind", "interpreters"])
def test_an_executor_elsewhere_gets_the_plain_function(name, monkeypatch):
    import concurrent.futures

    class Interpreters(Pickling, ThreadPoolExecutor):
        """Derived from the thread pool as the one of Python 3.14 is, and yet its work travels."""

    executor = Pickling()
    if name == "interpreters":
        monkeypatch.setattr(concurrent.futures, "InterpreterPoolExecutor", Interpreters, raising=False)
        executor = Interpreters(1)
    report = process_in_chunks(range(20), sum, chunk_size=10, max_bytes=1000, executor=executor, breaker=Purse())

    assert report.results == [45, 145]


@pytest.mark.parametrize("run", [threads, threads_on_a_loop])
def test_a_function_in_a_thread_sees_the_context_of_the_caller(run):
    token = SCOPE.set("around the job")
    try:
        report = run(range(20), scope_of, chunk_size=10, breaker=Purse())
    finally:
        SCOPE.reset(token)

    assert report.results == ["around the job"] * 2


# ----- with the breaker itself


def breaker_at(fraction):
    return MemoryCircuitBreaker(sampler=ScriptedSampler([fraction], limit_bytes=1000 * MIB), relief=False)


def test_chunks_in_threads_book_their_bytes_each():
    breaker, seen, together = breaker_at(0.1), [], threading.Barrier(4)

    def work(chunk):
        together.wait(SOON)
        seen.append(breaker.statistics().reserved_bytes)
        together.wait(SOON)

    with ThreadPoolExecutor(4) as pool:
        process_in_chunks(
            range(40), work, chunk_size=10, max_bytes=100 * MIB, executor=pool, concurrency=4, breaker=breaker
        )

    assert seen == [400 * MIB] * 4
    assert breaker.statistics().reserved_bytes == 0


def test_chunks_in_tasks_book_their_bytes_each():
    breaker, seen = breaker_at(0.1), []

    async def main():
        everybody = asyncio.Event()

        async def work(chunk):
            seen.append(0)
            if len(seen) == 4:
                seen[:] = [breaker.statistics().reserved_bytes]
                everybody.set()
            await asyncio.wait_for(everybody.wait(), SOON)

        await aprocess_in_chunks(range(40), work, chunk_size=10, max_bytes=100 * MIB, concurrency=4, breaker=breaker)

    asyncio.run(main())

    assert seen == [400 * MIB]
    assert breaker.statistics().reserved_bytes == 0


@pytest.mark.parametrize("run", [process_in_chunks, threads, slices, threads_on_a_loop])
def test_a_guarded_function_draws_from_its_chunk(run):
    breaker = breaker_at(0.65)  # 150 MiB are left: those of one chunk, and not once more those of its function

    @breaker.guard(cost=100 * MIB, timeout=0.0)
    def fn(chunk):
        return len(chunk)

    report = run(range(40), fn, chunk_size=10, max_bytes=100 * MIB, breaker=breaker, on_pressure="wait")

    assert report.items_done == 40


def test_a_guarded_async_function_draws_from_its_chunk():
    breaker = breaker_at(0.65)

    @breaker.guard(cost=100 * MIB, timeout=0.0)
    async def fn(chunk):
        await asyncio.sleep(0)
        return len(chunk)

    report = tasks(range(40), fn, chunk_size=10, max_bytes=100 * MIB, breaker=breaker, on_pressure="wait")

    assert report.items_done == 40


@pytest.mark.parametrize("run", [process_in_chunks, threads, slices, threads_on_a_loop])
def test_a_guarded_function_draws_from_what_is_held_around_the_job(run):
    breaker = breaker_at(0.65)

    @breaker.guard(cost=50 * MIB, timeout=0.0)
    def fn(chunk):
        return len(chunk)

    with breaker.reserve(140 * MIB):
        report = run(range(40), fn, chunk_size=10, breaker=breaker, on_pressure="wait")

    assert report.items_done == 40
