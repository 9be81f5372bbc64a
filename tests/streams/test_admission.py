"""
What a job does when it is refused, and when memory runs out in its function.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from purse import Purse, refusal

from memguard import (
    ChunksRefusedError,
    MemoryCircuitBreakerError,
    aprocess_in_chunks,
    process_in_chunks,
)

SOON = 30.0


def threads(items, fn, **options):
    with ThreadPoolExecutor(4) as pool:
        return process_in_chunks(items, fn, executor=pool, **({"concurrency": 3} | options))


def slices(items, fn, **options):
    return asyncio.run(aprocess_in_chunks(items, fn, max_block=None, **options))


def tasks(items, fn, **options):
    async def work(chunk):
        await asyncio.sleep(0)
        return fn(chunk)

    return asyncio.run(aprocess_in_chunks(items, work, **({"concurrency": 3} | options)))


def threads_on_a_loop(items, fn, **options):
    async def main():
        with ThreadPoolExecutor(4) as pool:
            return await aprocess_in_chunks(items, fn, executor=pool, **({"concurrency": 3} | options))

    return asyncio.run(main())


def many(run):
    return run in (threads, tasks, threads_on_a_loop)


FORMS = [process_in_chunks, threads, slices, tasks, threads_on_a_loop]
AT_ONCE = [threads, tasks, threads_on_a_loop]


# ----- a finished job is done


@pytest.mark.parametrize("on_pressure", ["shrink", "wait", "partial", "raise"])
@pytest.mark.parametrize("source", [lambda: list(range(20)), lambda: iter(range(20)), lambda: range(20)])
@pytest.mark.parametrize("run", FORMS)
def test_a_job_whose_items_are_done_is_done_however_full_memory_is(run, source, on_pressure):
    purse = Purse()

    def work(chunk):
        if chunk[-1] == 19:
            purse.closed = True
        return len(chunk)

    report = run(source(), work, chunk_size=10, breaker=purse, on_pressure=on_pressure, concurrency=1)

    assert (report.complete, report.items_done, purse.asked) == (True, 20, 2)


@pytest.mark.parametrize("run", FORMS)
def test_nothing_is_asked_for_a_source_that_is_empty(run):
    purse = Purse()
    purse.closed = True

    assert run([], len, breaker=purse, on_pressure="raise").complete
    assert purse.asked == 0


@pytest.mark.parametrize("run", FORMS)
def test_an_error_of_the_source_is_told_without_asking_for_its_next_chunk(run):
    purse = Purse()

    def source():
        yield from range(10)
        purse.closed = True
        raise OSError("source broke")

    with pytest.raises(OSError, match="source broke"):
        run(source(), len, chunk_size=5, breaker=purse, concurrency=1)


@pytest.mark.parametrize("run", FORMS)
def test_what_was_taken_and_not_done_is_in_the_report(run):
    purse, source = Purse(), iter(range(100))

    def work(chunk):
        purse.closed = chunk[0] >= 20
        return chunk

    report = run(source, work, chunk_size=10, breaker=purse, on_pressure="partial", concurrency=1)

    done = sum(report.results, [])
    assert not report.complete
    assert report.next_index == len(done)
    assert [*done, *report.pending, *source] == list(range(100))


@pytest.mark.parametrize("run", FORMS)
def test_a_refusal_that_is_raised_tells_what_is_done_too(run):
    purse, source = Purse(), iter(range(100))

    def work(chunk):
        purse.closed = True
        return chunk

    with pytest.raises(MemoryCircuitBreakerError) as caught:
        run(source, work, chunk_size=10, breaker=purse, on_pressure="raise", concurrency=1)

    report = caught.value.report
    assert [*sum(report.results, []), *report.pending, *source] == list(range(100))


# ----- waiting


@pytest.mark.parametrize("run", FORMS)
def test_without_progress_its_patience_ends_with_what_is_done(run):
    purse = Purse()

    def work(chunk):
        purse.closed = True
        return len(chunk)

    purse.reserve = lambda nbytes, *, timeout=0.0: Refusing(purse, timeout)
    with pytest.raises(ChunksRefusedError) as caught:
        run(range(100), work, chunk_size=8, breaker=purse, patience=0.01, concurrency=1)

    assert caught.value.report.results == [8]
    assert caught.value.report.next_index == 8
    assert purse.waits[0] <= 0.01


class Refusing:
    """A hold that refuses at once, however much time it is given."""

    def __init__(self, purse, timeout):
        purse.waits.append(timeout)

    def __enter__(self):
        raise refusal()

    async def __aenter__(self):
        raise refusal()


@pytest.mark.parametrize("run", FORMS)
def test_by_default_it_is_given_a_minute(run):
    purse, given = Purse(), []
    purse.closed = True
    reserve = purse.reserve

    def open_and_reserve(nbytes, *, timeout=0.0):
        given.append(timeout)
        purse.open()
        return reserve(nbytes, timeout=timeout)

    purse.reserve = open_and_reserve
    report = run(range(10), len, chunk_size=8, breaker=purse)

    assert report.complete
    assert len(given) == 1
    assert 59 < given[0] <= 60


@pytest.mark.parametrize("patience", [60.0, None])
@pytest.mark.parametrize("run", [process_in_chunks, threads])
def test_room_that_comes_in_time_is_taken(run, patience):
    purse = Purse(100)
    others = purse.reserve(90).__enter__()
    opener = threading.Thread(target=lambda: (purse.waiting.wait(SOON), others.release()))
    opener.start()

    report = run(range(40), len, chunk_size=8, max_bytes=100, breaker=purse, patience=patience)
    opener.join()

    assert report.complete
    assert purse.waiting.is_set()
    assert purse.out == 0


@pytest.mark.parametrize("on_pressure", ["shrink", "wait"])
@pytest.mark.parametrize("form", ["slices", "tasks", "threads"])
def test_waiting_does_not_hold_up_the_loop(form, on_pressure):
    async def main():
        purse = Purse(100)
        others = purse.reserve(90).__enter__()

        async def opener():
            while not purse.waiting.is_set():
                await asyncio.sleep(0)
            others.release()

        async def work(chunk):
            return len(chunk)

        options = {"chunk_size": 8, "max_bytes": 100, "breaker": purse, "on_pressure": on_pressure}
        with ThreadPoolExecutor(2) as pool:
            if form == "threads":
                options |= {"executor": pool, "concurrency": 2}
            job = aprocess_in_chunks(range(40), work if form == "tasks" else len, **options)
            report, _ = await asyncio.wait_for(asyncio.gather(job, opener()), SOON)
        assert report.complete
        assert purse.out == 0

    asyncio.run(main())


@pytest.mark.parametrize("run", [process_in_chunks, slices, tasks])
def test_while_it_waits_it_keeps_nothing_of_the_chunk_before(run):
    class Row:
        pass

    purse, rows, results, alive = Purse(), [], [], []

    def source():
        for _ in range(20):
            yield Row()

    def work(chunk):
        rows.extend(map(weakref.ref, chunk))
        result = Row()
        results.append(weakref.ref(result))
        purse.closed = len(results) == 1
        return result

    def reserve(nbytes, *, timeout=0.0):
        gc.collect()
        alive.extend(each() for each in [*rows, *results] if each() is not None)
        purse.closed = False
        return Purse.reserve(purse, nbytes)

    purse.reserve = reserve
    report = run(source(), work, chunk_size=8, on_result=id, breaker=purse, patience=60.0, concurrency=1)

    assert report.complete
    assert alive == []


def test_a_gate_that_refuses_at_once_is_asked_again_while_there_is_patience():
    purse = Purse()
    purse.closed = True
    tries = []

    def reserve(nbytes, *, timeout=0.0):
        tries.append(timeout)
        if len(tries) < 3:
            return Refusing(purse, timeout)
        purse.closed = False
        return Purse.reserve(purse, nbytes)

    purse.reserve = reserve

    assert process_in_chunks(range(10), len, breaker=purse).complete
    assert len(tries) == 3


def test_on_the_thread_of_a_loop_the_sync_form_does_not_wait():
    purse = Purse()
    purse.closed = True

    async def main():
        with pytest.raises(ChunksRefusedError):
            process_in_chunks(range(10), len, breaker=purse)

    asyncio.run(main())
    assert purse.waits == []


@pytest.mark.parametrize("run", FORMS)
def test_what_can_never_fit_is_not_waited_for(run):
    options = {"chunk_size": 8, "max_bytes": 1000}

    shrunk = run(range(40), len, breaker=Purse(500), **options)
    assert shrunk.complete
    assert max(shrunk.results) <= 4

    for on_pressure, error in (("shrink", ChunksRefusedError), ("wait", MemoryCircuitBreakerError)):
        purse = Purse(100)
        with pytest.raises(error) as caught:
            run(range(40), len, breaker=purse, on_pressure=on_pressure, patience=None, **options)
        assert type(caught.value) is error
        assert purse.waits == []


# ----- chunks that run at once


@pytest.mark.parametrize("run", AT_ONCE)
def test_chunks_at_once_book_their_own_bytes_each(run):
    purse = Purse()
    run(range(90), len, chunk_size=10, max_bytes=100, breaker=purse)

    assert purse.most == 300
    assert purse.out == 0


@pytest.mark.parametrize("on_pressure", ["shrink", "wait", "partial"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("run", AT_ONCE)
def test_bytes_of_ones_own_chunks_are_waited_for_by_collecting_these(run, ordered, on_pressure):
    purse = Purse(100)
    report = run(
        range(90),
        list,
        chunk_size=10,
        min_chunk_size=10,
        max_bytes=100,
        breaker=purse,
        ordered=ordered,
        on_pressure=on_pressure,
        patience=0,
    )

    assert report.complete
    assert sorted(sum(report.results, [])) == list(range(90))
    assert purse.most == 100
    assert purse.waits == []


@pytest.mark.parametrize("on_loop", [False, True])
def test_a_result_that_waits_for_an_earlier_one_gives_its_bytes_back(on_loop):
    purse, third = Purse(2000), threading.Event()

    def work(chunk):
        if chunk[0] == 0:
            assert third.wait(SOON)
        if chunk[0] == 20:
            third.set()
        return chunk[0]

    options = {"chunk_size": 10, "min_chunk_size": 10, "max_bytes": 1000, "breaker": purse, "concurrency": 3}
    report = (threads_on_a_loop if on_loop else threads)(range(30), work, **options)

    assert report.results == [0, 10, 20]


@pytest.mark.parametrize("run", AT_ONCE)
def test_a_source_that_needs_the_bytes_of_finished_chunks_gets_them(run):
    purse = Purse(1000)

    def source():
        for number in range(40):
            if number % 10 == 0:
                with purse.reserve(1000, timeout=SOON):
                    pass
            yield number

    if run is threads:
        assert run(source(), list, chunk_size=10, max_bytes=1000, breaker=purse).complete
        return

    async def asource():
        for number in range(40):
            if number % 10 == 0:
                async with purse.reserve(1000, timeout=SOON):
                    pass
            yield number

    assert run(asource(), list, chunk_size=10, max_bytes=1000, breaker=purse).complete


def test_an_error_of_a_chunk_waits_for_those_that_run_and_gives_all_back():
    purse, begun, over = Purse(), threading.Event(), []

    def work(chunk):
        if chunk[0] == 0:
            assert begun.wait(SOON)
            raise OSError("boom")
        begun.set()
        over.append(chunk[0])

    for run in (threads, threads_on_a_loop):
        begun.clear()
        with pytest.raises(OSError, match="boom"):
            run(range(30), work, chunk_size=10, max_bytes=100, breaker=purse)
        assert purse.out == 0
    assert over


def test_a_cancelled_job_holds_what_a_thread_still_uses_until_it_is_done():
    purse, begun, go_on = Purse(), threading.Event(), threading.Event()

    def work(chunk):
        begun.set()
        assert go_on.wait(SOON)

    async def main():
        with ThreadPoolExecutor(1) as pool:
            job = aprocess_in_chunks(range(30), work, chunk_size=10, max_bytes=100, executor=pool, breaker=purse)
            task = asyncio.create_task(job)
            while not begun.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert purse.out == 100
            go_on.set()

    asyncio.run(main())
    assert purse.out == 0


# ----- memory runs out in the function


class Hungry:
    """Raises MemoryError on more than *most* items; notes what it was called with."""

    def __init__(self, most):
        self.most, self.calls = most, []

    def __call__(self, chunk):
        self.calls.append(chunk)
        if len(chunk) > self.most:
            raise MemoryError
        return chunk


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("run", FORMS)
def test_a_chunk_in_which_memory_ran_out_is_done_again_in_halves(run, ordered):
    fn = Hungry(3)
    report = run(
        range(50), fn, chunk_size=8, min_chunk_size=1, breaker=Purse(), on_memory_error="shrink", ordered=ordered
    )

    items = sum(report.results, [])
    assert (items if ordered else sorted(items)) == list(range(50))
    assert (report.complete, report.items_done, report.next_index) == (True, 50, 50)
    assert max(map(len, report.results)) <= 3
    assert len([text for text in report.warnings if "MemoryError" in text]) == 1


@pytest.mark.parametrize("run", FORMS)
def test_at_the_smallest_chunk_a_memory_error_is_raised(run):
    fn = Hungry(0)
    with pytest.raises(MemoryError):
        run(range(50), fn, chunk_size=8, min_chunk_size=2, breaker=Purse(), on_memory_error="shrink", concurrency=1)

    assert list(map(len, fn.calls)) == [8, 4, 2]


@pytest.mark.parametrize("run", FORMS)
def test_nothing_is_run_twice_unless_that_was_asked_for(run):
    fn = Hungry(0)
    with pytest.raises(MemoryError):
        run(range(50), fn, chunk_size=8, breaker=Purse(), concurrency=1)

    assert len(fn.calls) == 1


@pytest.mark.parametrize("run", FORMS)
def test_a_memory_error_of_another_than_the_function_is_not_one_of_its(run):
    calls = []

    def full(result):
        raise MemoryError

    with pytest.raises(MemoryError):
        run(
            range(50),
            calls.append,
            chunk_size=8,
            on_result=full,
            breaker=Purse(),
            on_memory_error="shrink",
            concurrency=1,
        )
    assert len(calls) == 1


@pytest.mark.parametrize("run", FORMS)
def test_items_of_a_byte_budget_are_done_again_too(run):
    fn = Hungry(5)
    report = run(
        [b"x" * 100] * 60,
        fn,
        chunk_size=100,
        min_chunk_size=1,
        max_bytes=2000,
        breaker=Purse(),
        on_memory_error="shrink",
    )

    assert report.items_done == 60
    assert max(map(len, report.results)) <= 5


# ----- all of it together


@pytest.mark.parametrize("run", FORMS)
@given(
    count=st.integers(0, 120),
    size=st.integers(1, 30),
    fits=st.integers(1, 5),
    eats=st.integers(1, 30),
    ordered=st.booleans(),
    refusals=st.lists(st.booleans(), max_size=30),
)
@settings(deadline=None, max_examples=40)
def test_every_item_is_done_once_whatever_is_refused_and_runs_out(run, *, count, size, fits, eats, ordered, refusals):
    purse = Purse(1000 * fits)
    answers = list(refusals)

    def check():
        if answers and answers.pop():
            raise refusal()

    purse.check = check
    report = run(
        iter(range(count)),
        Hungry(eats),
        chunk_size=size,
        min_chunk_size=1,
        max_bytes=1000,
        breaker=purse,
        on_memory_error="shrink",
        ordered=ordered,
        patience=None,
    )

    items = sum(report.results, [])
    assert (items if ordered else sorted(items)) == list(range(count))
    assert (report.items_done, report.next_index, report.complete) == (count, count, True)
    assert report.pending == ()
    assert purse.most <= 1000 * fits
    assert purse.out == 0


class Emptying(Hungry):
    """Takes the items out of the list that it gets, as a consumer of a queue would."""

    def __call__(self, chunk):
        items = list(chunk)
        chunk.clear()
        return super().__call__(items)


@pytest.mark.parametrize("run", FORMS)
@pytest.mark.parametrize("most", [8, 3])
def test_a_function_may_empty_the_list_that_it_gets(run, most):
    report = run(range(50), Emptying(most), chunk_size=8, min_chunk_size=1, breaker=Purse(), on_memory_error="shrink")

    assert sorted(sum(report.results, [])) == list(range(50))
    assert (report.complete, report.items_done, report.next_index) == (True, 50, 50)


def test_a_chunk_for_a_process_pool_books_the_copies_of_it_that_are_made(monkeypatch):

    class Pool(ThreadPoolExecutor):
        """Stands for one of processes."""

    purse = Purse()
    with Pool(1) as pool:
        process_in_chunks(range(10), len, chunk_size=10, max_bytes=1000, breaker=purse, executor=pool)
        assert purse.most == 1000
        monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
        process_in_chunks(range(10), len, chunk_size=10, max_bytes=1000, breaker=purse, executor=pool)
        assert purse.most == 4000
        asyncio.run(aprocess_in_chunks(range(10), len, chunk_size=10, max_bytes=1000, breaker=purse, executor=pool))
    assert (purse.most, purse.out) == (4000, 0)
