from __future__ import annotations

import asyncio
import gc
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard import (
    UNGUARDED,
    ChunksRefusedError,
    Level,
    LoopPacer,
    MemoryCircuitBreakerError,
    MemoryUsage,
    achunked,
    aprocess_in_chunks,
    chunked,
    process_in_chunks,
    yield_to_loop,
)

SOON = 30.0


# ----- chunked


@given(st.lists(st.integers()), st.integers(1, 50))
def test_chunks_together_are_the_items_in_order(items, size):
    for source in (items, tuple(items), iter(items)):
        chunks = list(chunked(source, size))
        assert sum(chunks, []) == items
        assert all(len(chunk) == size for chunk in chunks[:-1])
        assert all(chunks)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 100), st.integers(1, 9))
def test_with_a_weigher_of_ones_own_the_byte_bound_is_exact(items, budget, size):
    chunks = list(chunked(items, size, max_bytes=budget, sizeof=len))

    assert sum(chunks, []) == items
    for chunk in chunks:
        assert len(chunk) <= size
        assert len(chunk) == 1 or sum(map(len, chunk)) <= budget


def test_without_one_rows_are_weighed_by_sample():
    rows = [["x" * 100] * 10 for _ in range(5000)]
    row_bytes = sys.getsizeof(rows[0]) + 10 * sys.getsizeof(rows[0][0])

    chunks = list(chunked(iter(rows), 10**6, max_bytes=100 * row_bytes))

    assert sum(chunks, []) == rows
    assert all(80 <= len(chunk) <= 107 for chunk in chunks[:-1])


def test_a_range_is_sliced_and_numpy_like_integers_are_sizes():
    class Index:
        def __index__(self):
            return 2

    assert list(chunked(range(5), Index())) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_size_that_cannot_be_meant_is_refused_at_the_call(size, error):
    with pytest.raises(error, match=str(size)):
        chunked([], size)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_bytes"):
        chunked([], max_bytes=0)


def test_nothing_makes_no_chunk_also_with_a_budget():
    assert list(chunked(iter([]), max_bytes=100)) == []


def test_rows_that_are_dicts_weigh_what_they_hold():
    rows = [{"name": "x" * 1000} for _ in range(200)]

    chunks = list(chunked(iter(rows), max_bytes="50 KiB"))

    assert sum(chunks, []) == rows
    assert all(35 <= len(chunk) <= 50 for chunk in chunks[:-1])


# ----- pacing


def test_a_busy_task_gives_way_to_timers_and_others():
    seen = []

    async def other():
        for _ in range(3):
            seen.append("other")
            await asyncio.sleep(0)

    async def main():
        task = asyncio.create_task(other())
        asyncio.get_running_loop().call_later(0, seen.append, "timer")
        await yield_to_loop()
        seen.append("me")
        await task

    asyncio.run(main())

    assert sorted(seen[:-1]) == ["other", "other", "other", "timer"]
    assert seen[-1] == "me"


def test_busy_tasks_take_turns_and_none_starves():
    turns = []

    async def work(name):
        async with LoopPacer(max_block=1e-9) as pacer:
            for _ in range(5):
                turns.append(name)
                await pacer.tick()

    async def main():
        await asyncio.gather(*(work(name) for name in "abc"))

    asyncio.run(main())

    assert turns == list("abc" * 5)


def test_tasks_that_are_always_ready_do_not_keep_a_parked_one_out():
    async def main():
        done = False

        async def spin():
            while not done:
                await asyncio.sleep(0)

        task = asyncio.create_task(spin())
        await asyncio.wait_for(yield_to_loop(), SOON)
        done = True
        await task

    asyncio.run(main())


def test_a_parked_task_that_is_cancelled_leaves_the_line():
    async def main():
        parked = [asyncio.create_task(yield_to_loop()) for _ in range(3)]
        await asyncio.sleep(0)
        parked[0].cancel()
        await asyncio.wait_for(asyncio.gather(*parked, return_exceptions=True), SOON)
        assert [task.cancelled() for task in parked] == [True, False, False]

    asyncio.run(main())


def test_a_loop_that_hides_its_queue_is_given_three_rounds(monkeypatch):
    async def main():
        from memguard.streams._turns import turns_of_this_loop

        turns = turns_of_this_loop()
        turns._ready = turns._timers = turns._selector = None
        await asyncio.wait_for(yield_to_loop(), SOON)

    asyncio.run(main())


def test_a_pacer_outside_its_block_says_so():
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(LoopPacer().tick())


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), ("1", TypeError)])
def test_a_block_that_cannot_be_meant_is_refused(value, error):
    with pytest.raises(error):
        LoopPacer(value)


# ----- achunked


async def ticks(items, *, fail_after=None, closed=None):
    try:
        for number, item in enumerate(items):
            if number == fail_after:
                raise OSError("source broke")
            yield item
    finally:
        if closed is not None:
            closed.append(1)


@pytest.mark.parametrize("make", [iter, ticks], ids=["sync", "async"])
@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 95])
def test_async_chunks_together_are_the_items_in_order(make, count):
    async def main():
        return [chunk async for chunk in achunked(make(range(count)), 10)]

    chunks = asyncio.run(main())

    assert sum(chunks, []) == list(range(count))
    assert all(len(chunk) == 10 for chunk in chunks[:-1])


@pytest.mark.parametrize("make", [iter, ticks], ids=["sync", "async"])
def test_the_byte_bound_holds_on_a_loop_too(make):
    items = [b"x" * n for n in (5, 5, 5, 30, 1, 9, 1)]

    async def main():
        return [chunk async for chunk in achunked(make(items), 10, max_bytes=10, sizeof=len)]

    assert [list(map(len, chunk)) for chunk in asyncio.run(main())] == [[5, 5], [5], [30], [1, 9], [1]]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_of_the_source_comes_after_the_partial_chunk(kind):
    def sync():
        yield from range(7)
        raise OSError("source broke")

    async def main():
        source = sync() if kind == "sync" else ticks(range(20), fail_after=7)
        chunks = achunked(source, 5)
        assert await anext(chunks) == [0, 1, 2, 3, 4]
        assert await anext(chunks) == [5, 6]
        with pytest.raises(OSError, match="source broke"):
            await anext(chunks)
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)

    asyncio.run(main())


def test_a_consumer_that_times_out_loses_nothing():
    async def main():
        gate = asyncio.Event()

        async def source():
            for number in range(6):
                if number == 3:
                    await gate.wait()
                yield number

        async with achunked(source(), 6) as chunks:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(chunks), 0.001)
            gate.set()
            assert await asyncio.wait_for(anext(chunks), SOON) == [0, 1, 2, 3, 4, 5]

    asyncio.run(main())


def test_max_wait_hands_out_what_is_there():
    async def main():
        gate = asyncio.Event()

        async def source():
            yield 1
            yield 2
            await gate.wait()
            yield 3

        async with achunked(source(), 10, max_wait=0.001) as chunks:
            first = await asyncio.wait_for(anext(chunks), SOON)
            gate.set()
            rest = [item async for chunk in chunks for item in chunk]
        assert first + rest == [1, 2, 3]
        assert 1 <= len(first) <= 2

    asyncio.run(main())


def test_leaving_early_closes_the_source():
    async def main():
        closed = []
        async with achunked(ticks(range(100), closed=closed), 5) as chunks:
            assert await anext(chunks) == [0, 1, 2, 3, 4]
        assert closed == [1]
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)

    asyncio.run(main())


@pytest.mark.parametrize("begun", [True, False])
def test_closing_closes_a_generator_that_it_reads_from(begun):
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(1)

    async def main():
        items = source()
        next(items)
        async with achunked(items, 5) as chunks:
            if begun:
                assert await anext(chunks) == [1, 2, 3, 4, 5]
        assert closed == [1]

    asyncio.run(main())


def test_closing_one_that_was_never_begun_closes_its_async_source():
    async def main():
        closed = []
        items = ticks(range(100), closed=closed)
        await anext(items)
        await achunked(items, 5).aclose()
        assert closed == [1]

    asyncio.run(main())


def test_closing_leaves_a_source_alone_that_cannot_be_closed():
    async def main():
        items = iter(range(100))
        async with achunked(items, 5) as chunks:
            await anext(chunks)
        assert next(items) == 5

    asyncio.run(main())


def test_what_is_no_mere_error_of_the_source_reaches_the_consumer_too():
    class Shutdown(BaseException):
        pass

    async def source():
        yield 1
        raise Shutdown

    async def main():
        chunks = achunked(source(), 5)
        assert await anext(chunks) == [1]
        with pytest.raises(Shutdown):
            await anext(chunks)

    asyncio.run(main())


def test_an_abandoned_iterator_ends_its_task():
    async def main():
        closed = []
        chunks = achunked(ticks(range(100), closed=closed), 5)
        await anext(chunks)
        del chunks
        gc.collect()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_the_pump_reads_at_most_one_chunk_ahead():
    async def main():
        given = []

        async def source():
            for number in range(100):
                given.append(number)
                yield number

        async with achunked(source(), 10) as chunks:
            await anext(chunks)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(given) <= 20

    asyncio.run(main())


def test_ready_items_do_not_hold_up_the_loop():
    async def main():
        beats = 0
        done = False

        async def heart():
            nonlocal beats
            while not done:
                beats += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(heart())
        for make in (iter, ticks):
            before = beats
            async for _ in achunked(make(range(200_000)), 200_000, max_block=0.0005):
                pass
            assert beats - before > 5
        done = True
        await task

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (((), 0), ValueError),
        ((5, 1), TypeError),
        (((), 1, {"max_wait": 1}), TypeError),
        ((ticks([]), 1, {"max_wait": 0}), ValueError),
        ((ticks([]), 1, {"max_wait": True}), TypeError),
    ],
)
def test_arguments_of_achunked_are_checked_at_once(arguments, error):
    items, size, *rest = arguments
    with pytest.raises(error):
        achunked(items, size, **(rest[0] if rest else {}))


# ----- process_in_chunks


class ScriptedGate:
    """Refuses or admits as told; notes what was reserved."""

    level = Level.NORMAL

    def __init__(self, *answers):
        self.answers = list(answers)
        self.reserved = []
        self.waits = 0

    def check(self):
        usage = MemoryUsage(1, 1, 90, 100, "scripted", 0.0)
        if self.answers and not self.answers.pop(0):
            raise MemoryCircuitBreakerError(usage, 0, 0, 1.0, 80)
        return usage

    def allows(self, nbytes=0):
        return not self.answers or self.answers[0]

    def reserve(self, nbytes, *, timeout=0.0):
        self.reserved.append(nbytes)
        self.waits += timeout is None
        return UNGUARDED.reserve(nbytes)


def both_ways(items, fn, **options):
    """Run the job in both forms; they must tell the same."""
    gates = options.pop("answers", None)
    sync_options, async_options = dict(options), dict(options)
    if gates is not None:
        sync_options["breaker"], async_options["breaker"] = ScriptedGate(*gates), ScriptedGate(*gates)
    sync = process_in_chunks(items, fn, **sync_options)
    on_loop = asyncio.run(aprocess_in_chunks(items, fn, max_block=None, **async_options))
    assert sync.results == on_loop.results
    assert (sync.items_done, sync.complete, sync.next_index) == (
        on_loop.items_done,
        on_loop.complete,
        on_loop.next_index,
    )
    assert sync.warnings == on_loop.warnings
    return sync


def test_results_are_one_for_each_call_in_order():
    report = both_ways(range(25), list, chunk_size=10, breaker=UNGUARDED)

    assert report.results == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    assert (report.items_done, report.chunks_done, report.complete, report.next_index) == (25, 3, True, 25)
    assert report.peak_bytes is None


def test_an_empty_source_is_complete():
    report = both_ways([], list, chunk_size=10, breaker=UNGUARDED)

    assert (report.results, report.complete, report.items_done) == ([], True, 0)


def test_on_result_takes_the_results():
    taken = []
    report = process_in_chunks(range(25), sum, chunk_size=10, on_result=taken.append, breaker=UNGUARDED)

    assert taken == [45, 145, 110]
    assert report.results == []


def test_stop_when_stops_before_the_next_chunk_is_taken():
    source = iter(range(100))
    report = process_in_chunks(source, max, chunk_size=10, stop_when=lambda top: top >= 29, breaker=UNGUARDED)

    assert report.results == [9, 19, 29]
    assert (report.complete, report.next_index) == (False, 30)
    assert next(source) == 30


def test_shrink_halves_the_chunk_and_grows_back():
    report = both_ways(range(100), len, chunk_size=8, min_chunk_size=1, answers=[True, False, False])

    assert report.results == [8] + [2] * 4 + [4] * 4 + [8] * 8 + [4]
    assert report.complete
    assert len(report.warnings) == 1
    assert "smaller than 8 items" in report.warnings[0]


def test_refused_at_the_smallest_raises_with_what_is_done():
    for run in (
        lambda gate: process_in_chunks(range(100), len, chunk_size=8, breaker=gate, patience=0),
        lambda gate: asyncio.run(
            aprocess_in_chunks(range(100), len, chunk_size=8, breaker=gate, max_block=None, patience=0)
        ),
    ):
        with pytest.raises(ChunksRefusedError) as caught:
            run(ScriptedGate(True, True, False, False, False))

        assert isinstance(caught.value, MemoryCircuitBreakerError)
        assert caught.value.report.results == [8, 8]
        assert caught.value.report.next_index == 16
        assert caught.value.usage.used_bytes == 90


def test_partial_returns_what_is_done_with_a_warning():
    report = both_ways(range(100), len, chunk_size=8, on_pressure="partial", answers=[True, True, False])

    assert (report.results, report.complete, report.next_index) == ([8, 8], False, 16)
    assert "stopped after 16 items" in report.warnings[0]


def test_raise_raises_at_once():
    with pytest.raises(MemoryCircuitBreakerError) as caught:
        process_in_chunks(range(100), len, chunk_size=8, on_pressure="raise", breaker=ScriptedGate(False))

    assert not isinstance(caught.value, ChunksRefusedError)


def test_wait_waits_for_room():
    gate = ScriptedGate(True, False)
    report = process_in_chunks(range(20), len, chunk_size=8, on_pressure="wait", breaker=gate)

    assert (report.results, gate.waits) == ([8, 8, 4], 1)


def test_on_a_loop_it_waits_for_room_too():
    gate = ScriptedGate(True, False)
    report = asyncio.run(
        aprocess_in_chunks(range(20), len, chunk_size=8, on_pressure="wait", breaker=gate, max_block=None)
    )

    assert (report.results, gate.waits) == ([8, 8, 4], 1)


@pytest.mark.parametrize("on_loop", [False, True])
def test_a_byte_budget_is_reserved_while_a_chunk_runs(on_loop):
    gate = ScriptedGate()
    items, options = [b"x" * 1000] * 100, {"chunk_size": 50, "max_bytes": "20 KiB", "breaker": gate}
    if on_loop:
        report = asyncio.run(aprocess_in_chunks(items, len, max_block=None, **options))
    else:
        report = process_in_chunks(items, len, **options)

    assert report.items_done == 100
    assert set(gate.reserved) == {20 * 1024}
    assert max(report.results) <= 22
    assert report.chunks_done >= 5


def by_executor(items, fn, **options):
    with ThreadPoolExecutor(1) as pool:
        return process_in_chunks(items, fn, executor=pool, **options)


def by_async_function(items, fn, **options):
    async def work(chunk):
        return fn(chunk)

    return asyncio.run(aprocess_in_chunks(items, work, **options))


def on_loop(items, fn, **options):
    return asyncio.run(aprocess_in_chunks(items, fn, max_block=None, **options))


@pytest.mark.parametrize("run", [process_in_chunks, by_executor, by_async_function, on_loop])
def test_each_way_to_run_a_job_ends_where_it_is_told(run):
    stopped = run(range(100), max, chunk_size=10, stop_when=lambda top: top >= 29, breaker=UNGUARDED)
    partial = run(range(100), max, chunk_size=10, on_pressure="partial", breaker=ScriptedGate(True, True, False))

    assert (stopped.results, stopped.complete, stopped.next_index) == ([9, 19, 29], False, 30)
    assert (partial.results, partial.complete, partial.next_index) == ([9, 19], False, 20)


def test_an_error_of_the_function_reaches_the_caller_and_is_not_tried_again():
    calls = []

    def fn(items):
        calls.append(items)
        raise MemoryCircuitBreakerError(MemoryUsage(1, 1, 1, 1, "x", 0.0))

    with pytest.raises(MemoryCircuitBreakerError):
        process_in_chunks(range(10), fn, breaker=UNGUARDED)
    assert len(calls) == 1


def test_progress_comes_after_each_chunk_and_is_100_only_at_the_end():
    for run in (
        lambda told: process_in_chunks(range(25), len, chunk_size=10, on_progress=told.append, breaker=UNGUARDED),
        lambda told: asyncio.run(
            aprocess_in_chunks(range(25), len, chunk_size=10, on_progress=told.append, breaker=UNGUARDED)
        ),
    ):
        told = []
        run(told)

        assert [each.done for each in told] == [10, 20, 25]
        assert [each.percent for each in told] == [40.0, 80.0, 100.0]
        assert told[-1].eta == 0.0
        assert told[0].total == 25


def test_a_total_that_is_wrong_does_not_show_100_before_the_end():
    told = []
    process_in_chunks(iter(range(50)), len, chunk_size=10, total=20, on_progress=told.append, breaker=UNGUARDED)

    assert [each.percent for each in told][-1] == 100.0
    assert all(each.percent < 100 for each in told[:-1])


def test_a_progress_bar_that_breaks_does_not_stop_the_job(caplog):
    report = process_in_chunks(range(25), len, on_progress=lambda p: 1 / 0, breaker=UNGUARDED)

    assert report.complete
    assert "on_progress" in caplog.text


@pytest.mark.parametrize("ordered", [True, False])
def test_an_executor_runs_a_bounded_window(ordered):
    lock = threading.Lock()
    now = most = 0
    taken = []

    def source():
        for number in range(40):
            taken.append(number)
            yield number

    def fn(items):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            assert len(taken) <= 4 * 4 + sum(1 for _ in ()) + 40
        with lock:
            now -= 1
        return items

    with ThreadPoolExecutor(4) as pool:
        report = process_in_chunks(
            source(), fn, chunk_size=4, executor=pool, concurrency=3, ordered=ordered, breaker=UNGUARDED
        )

    assert most <= 3
    assert sorted(sum(report.results, [])) == list(range(40))
    assert report.next_index == 40
    if ordered:
        assert sum(report.results, []) == list(range(40))


def test_no_more_chunks_are_taken_than_run_at_once():
    class Slow:
        """An executor whose work is never done by itself."""

        def __init__(self):
            self.futures = []

        def submit(self, fn, *args):
            self.futures.append(Future())
            if len(self.futures) == 2:
                for future in self.futures:
                    future.set_exception(OSError("worker died"))
            return self.futures[-1]

    source = iter(range(100))
    slow = Slow()
    with pytest.raises(OSError, match="worker died"):
        process_in_chunks(source, len, chunk_size=10, executor=slow, concurrency=2, breaker=UNGUARDED)

    assert len(slow.futures) == 2
    assert next(source) == 20


def test_a_job_on_a_loop_uses_an_executor_too():
    async def main():
        with ThreadPoolExecutor(2) as pool:
            return await aprocess_in_chunks(
                ticks(range(40)), sum, chunk_size=4, executor=pool, concurrency=2, breaker=UNGUARDED
            )

    assert sum(asyncio.run(main()).results) == sum(range(40))


def test_a_stop_iteration_of_the_function_is_an_error_and_not_an_end():
    def fn(items):
        raise StopIteration

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        process_in_chunks(range(10), fn, breaker=UNGUARDED)
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        asyncio.run(aprocess_in_chunks(range(10), fn, breaker=UNGUARDED))

    async def main():
        with ThreadPoolExecutor(1) as pool:
            await asyncio.wait_for(aprocess_in_chunks(range(10), fn, executor=pool, breaker=UNGUARDED), SOON)

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        asyncio.run(main())


def test_an_async_function_gets_whole_chunks_so_many_at_once():
    running = most = 0

    async def fn(items):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return len(items)

    report = asyncio.run(aprocess_in_chunks(range(95), fn, chunk_size=10, concurrency=3, breaker=UNGUARDED))

    assert report.results == [10] * 9 + [5]
    assert most == 3


def test_an_error_of_one_async_chunk_cancels_the_others():
    cancelled = []

    async def fn(items):
        if items[0] == 10:
            raise OSError("boom")
        try:
            await asyncio.sleep(SOON)
        except asyncio.CancelledError:
            cancelled.append(items[0])
            raise

    async def main():
        await aprocess_in_chunks(range(95), fn, chunk_size=10, concurrency=3, ordered=False, breaker=UNGUARDED)

    with pytest.raises(OSError, match="boom"):
        asyncio.run(main())
    assert sorted(cancelled) == [0, 20]


def test_the_first_error_is_told_when_two_async_chunks_fail_at_once(caplog):
    async def fn(items):
        raise OSError(f"boom at {items[0]}")

    async def main():
        await aprocess_in_chunks(range(95), fn, chunk_size=10, concurrency=3, breaker=UNGUARDED)

    with pytest.raises(OSError, match="boom at 0"):
        asyncio.run(main())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_sync_function_on_a_loop_gets_slices_and_the_breaker_is_asked_once_a_chunk():
    gate = ScriptedGate()
    asked = []
    gate.check = lambda: asked.append(1)

    report = asyncio.run(aprocess_in_chunks(range(10_000), len, chunk_size=5000, breaker=gate))

    assert sum(report.results) == 10_000
    assert len(report.results) > 2
    assert len(asked) == 2


def test_the_loop_is_free_while_a_sync_function_works():
    async def main():
        beats = 0
        done = False

        async def heart():
            nonlocal beats
            while not done:
                beats += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(heart())
        await aprocess_in_chunks(range(200_000), lambda items: [str(n) for n in items], breaker=UNGUARDED)
        done = True
        await task
        assert beats > 5

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"min_chunk_size": 20, "chunk_size": 10}, ValueError, "min_chunk_size=20"),
        ({"concurrency": 2}, ValueError, "needs an executor"),
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"executor": 5}, TypeError, "submit"),
        ({"on_pressure": "panic"}, ValueError, "panic"),
        ({"max_bytes": "512m"}, ValueError, "512m"),
        ({"total": -1}, ValueError, "-1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        process_in_chunks([1], len, breaker=UNGUARDED, **options)
    with pytest.raises(error, match=words):
        asyncio.run(aprocess_in_chunks([1], len, breaker=UNGUARDED, **options))


def test_an_async_function_in_an_executor_is_refused():
    async def fn(items):
        return items

    with pytest.raises(TypeError, match="async fn"):
        asyncio.run(aprocess_in_chunks([1], fn, executor=ThreadPoolExecutor(1), breaker=UNGUARDED))


def test_the_environment_sets_the_chunk_size(monkeypatch):
    from memguard.settings import settings

    monkeypatch.setenv("MEMGUARD_CHUNK_SIZE", "3")
    settings.cache_clear()

    assert process_in_chunks(range(7), len, breaker=UNGUARDED).results == [3, 3, 1]
