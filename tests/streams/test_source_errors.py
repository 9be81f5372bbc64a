"""
What a source gave before it failed is handed out before its error, in every form.
"""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from forms import (
    ASYNC_FORMS,
    ASYNC_SOURCES,
    SOON,
    SYNC_FORMS,
    SYNC_SOURCE_ON_A_LOOP,
    SYNC_SOURCES,
    async_function,
    async_source,
    in_threads,
    on_loop,
    on_loop_in_threads,
    run_async,
    run_sync,
    sync_source,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard import UNGUARDED, achunked, aprocess_in_chunks, chunked, process_in_chunks

ERRORS = [None, OSError, asyncio.CancelledError, KeyboardInterrupt, SystemExit]
counts, sizes, errors = st.integers(0, 40), st.integers(1, 12), st.sampled_from(ERRORS)


def made(error):
    return None if error is None else error("source broke")


@pytest.mark.parametrize("form", SYNC_FORMS)
@given(kind=st.sampled_from(sorted(SYNC_SOURCES)), count=counts, size=sizes, error=errors)
@settings(deadline=None, max_examples=40)
def test_all_items_come_before_the_error(form, kind, count, size, error):
    raised = made(error)
    seen, got = run_sync(form, SYNC_SOURCES[kind](count, raised), size)

    assert seen == list(range(count))
    assert got is raised


@pytest.mark.parametrize("form", ASYNC_FORMS | SYNC_SOURCE_ON_A_LOOP)
@given(kind=st.sampled_from(sorted(SYNC_SOURCES | ASYNC_SOURCES)), count=counts, size=sizes, error=errors)
@settings(deadline=None, max_examples=40)
def test_on_a_loop_all_items_come_before_the_error(form, kind, count, size, error):
    if form in SYNC_SOURCE_ON_A_LOOP and kind in ASYNC_SOURCES:
        return
    raised = made(error)
    seen, got = run_async(form, lambda: (SYNC_SOURCES | ASYNC_SOURCES)[kind](count, raised), size)

    assert seen == list(range(count))
    assert got is raised


def test_a_source_that_awaited_something_cancelled_is_not_complete():
    async def source():
        yield 1
        yield 2
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        yield 3

    for form in ASYNC_FORMS:
        seen, got = run_async(form, source, 2)
        assert seen == [1, 2], form
        assert isinstance(got, asyncio.CancelledError), form


def test_a_source_that_swallows_our_cancellation_and_ends_is_not_complete():
    async def source(waiting):
        yield 1
        try:
            waiting.set()
            await asyncio.sleep(SOON)
        except asyncio.CancelledError:
            return

    async def main():
        waiting = asyncio.Event()
        task = asyncio.create_task(aprocess_in_chunks(source(waiting), list, chunk_size=5, breaker=UNGUARDED))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_job_that_is_cancelled_itself_does_not_go_on_with_the_partial_chunk():
    async def main():
        done, waiting = [], asyncio.Event()

        async def source():
            yield 1
            waiting.set()
            await asyncio.sleep(SOON)

        job = aprocess_in_chunks(source(), done.extend, chunk_size=5, breaker=UNGUARDED, max_block=None)
        task = asyncio.create_task(job)
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == []

    asyncio.run(main())


def test_a_pump_that_is_cancelled_before_its_first_step_leaves_nobody_waiting():
    async def main():
        chunks = achunked(async_source(5, None), 2)
        first = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        (pump,) = asyncio.all_tasks() - {asyncio.current_task(), first}
        pump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(first, SOON)

    asyncio.run(main())


def test_an_item_that_cannot_be_weighed_is_handed_out_before_the_error():
    items = [b"a", b"b", None, b"d"]
    seen = []

    with pytest.raises(TypeError):
        for chunk in chunked(iter(items), max_bytes=10, sizeof=len):
            seen.append(chunk)
    assert seen == [[b"a", b"b", None]]

    async def main():
        for source in (iter(items), each(items)):
            seen = []
            with pytest.raises(TypeError):
                async for chunk in achunked(source, max_bytes=10, sizeof=len):
                    seen.append(chunk)
            assert seen == [[b"a", b"b", None]]

    async def each(items):
        for item in items:
            yield item

    asyncio.run(main())


def test_items_that_do_not_say_what_they_take_are_not_lost():
    class Opaque:
        def __sizeof__(self):
            raise OSError("no size")

    items = [Opaque() for _ in range(20)]
    taken = []
    process_in_chunks(iter(items), taken.extend, chunk_size=5, max_bytes=100, breaker=UNGUARDED)

    assert taken == items
    assert sum(chunked(iter(items), 5, max_bytes=100), []) == items


def test_a_list_of_ones_own_is_asked_what_it_iterates_over():
    class Doubled(list):
        def __iter__(self):
            return (2 * item for item in super().__iter__())

    assert list(chunked(Doubled([1, 2, 3]), 2)) == [[2, 4], [6]]


def test_a_job_that_stops_before_the_error_tells_it_as_a_warning():
    report = process_in_chunks(
        sync_source(5, OSError("source broke")), list, chunk_size=10, stop_when=bool, breaker=UNGUARDED
    )

    assert (report.results, report.complete) == ([[0, 1, 2, 3, 4]], False)
    assert "source broke" in report.warnings[0]


def test_a_keyboard_interrupt_of_the_source_is_raised_even_beside_another_error():
    def fail(chunk):
        raise OSError("fn broke")

    with pytest.raises(KeyboardInterrupt) as caught:
        process_in_chunks(sync_source(5, KeyboardInterrupt()), fail, chunk_size=10, breaker=UNGUARDED)
    assert isinstance(caught.value.__context__, OSError)

    with pytest.raises(KeyboardInterrupt):
        process_in_chunks(sync_source(5, KeyboardInterrupt()), list, chunk_size=10, stop_when=bool, breaker=UNGUARDED)


def test_closing_chunks_does_not_swallow_a_system_exit_that_nobody_was_told():
    async def main():
        chunks = achunked(async_source(3, SystemExit()), 2)
        await anext(chunks)
        for _ in range(20):
            await asyncio.sleep(0)
        with pytest.raises(SystemExit):
            await chunks.aclose()
        await chunks.aclose()

    asyncio.run(main())


# ----- what is kept alive


class Witness:
    """Something to see the end of."""


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def failing(witnesses):
    def fn(chunk):
        local = Witness()
        witnesses.append(weakref.ref(local))
        raise OSError("fn broke")

    return fn


def on_this_thread(items, fn, size, *, concurrency):
    process_in_chunks(items, fn, chunk_size=size, breaker=UNGUARDED)


async def in_slices(items, fn, size, *, concurrency):
    await on_loop(items, fn, size)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("run", [on_this_thread, in_threads])
def test_nothing_keeps_the_locals_of_a_function_that_failed(run):
    witnesses = []
    with pytest.raises(OSError, match="fn broke"):
        run(range(30), failing(witnesses), 10, concurrency=2)

    assert witnesses
    assert [witness() for witness in witnesses] == [None] * len(witnesses)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("run", [in_slices, async_function, on_loop_in_threads])
def test_on_a_loop_nothing_keeps_the_locals_of_a_function_that_failed(run):
    async def main():
        witnesses = []
        with pytest.raises(OSError, match="fn broke"):
            await run(range(30), failing(witnesses), 10, concurrency=2)
        await asyncio.sleep(0)

        assert witnesses
        assert [witness() for witness in witnesses] == [None] * len(witnesses)

    asyncio.run(main())


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("form", SYNC_FORMS)
def test_nothing_keeps_the_items_of_a_source_that_failed(form):
    witnesses = []

    def source():
        for _ in range(25):
            item = Witness()
            witnesses.append(weakref.ref(item))
            yield item
        del item
        raise OSError("source broke")

    seen = []
    try:
        SYNC_FORMS[form](source(), seen, 10)
    except OSError as error:
        seen.clear()
        # The error is still held, with its traceback.
        assert [witness() for witness in witnesses] == [None] * 25
        assert str(error) == "source broke"


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("form", ASYNC_FORMS)
def test_nothing_keeps_the_items_of_an_async_source_that_failed(form):
    witnesses = []

    async def source():
        for _ in range(25):
            item = Witness()
            witnesses.append(weakref.ref(item))
            yield item
        del item
        raise OSError("source broke")

    async def main():
        seen = []
        try:
            await ASYNC_FORMS[form](source(), seen, 10)
        except OSError as error:
            seen.clear()
            assert [witness() for witness in witnesses] == [None] * 25
            assert str(error) == "source broke"

    asyncio.run(main())


@pytest.mark.usefixtures("_no_collector")
def test_an_iterator_that_handed_an_error_over_forgets_it():
    async def main():
        def source():
            local = Witness()
            witnesses.append(weakref.ref(local))
            yield 1
            raise OSError("source broke")

        async def asource():
            local = Witness()
            witnesses.append(weakref.ref(local))
            yield 1
            raise OSError("source broke")

        witnesses = []
        kept = [achunked(source(), 5), achunked(asource(), 5)]
        for chunks in kept:
            await anext(chunks)
            with pytest.raises(OSError, match="source broke"):
                await anext(chunks)
        del chunks
        await asyncio.sleep(0)
        assert [witness() for witness in witnesses] == [None, None]

    asyncio.run(main())
