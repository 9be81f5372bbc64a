"""
A source that is left early is closed, in the task that read it; but for an iterator that its owner may go on with.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc

import pytest
from forms import SOON, Rows
from purse import Purse

from memguard import (
    UNGUARDED,
    ChunksRefusedError,
    LoopPacer,
    achunked,
    aprocess_in_chunks,
    chunked,
    process_in_chunks,
)

inside = contextvars.ContextVar("inside", default=None)


async def witness(log, count=100, pause=0.0):
    """Note which task begins and which ends it; a scope in it must be left where it was entered."""
    token = inside.set(log)
    log.append(asyncio.current_task())
    try:
        for number in range(count):
            yield number
            await asyncio.sleep(pause)
    finally:
        log.append(asyncio.current_task())
        inside.reset(token)


def fails(chunk):
    raise OSError("fn broke")


async def afails(chunk):
    raise OSError("fn broke")


async def alen(chunk):
    return len(chunk)


def refusing_after_one():
    purse = Purse()

    def check():
        if purse.asked:
            purse.closed = True
        Purse.check(purse)

    purse.check = check
    return purse


LEAVING = {
    "error": {"fn": fails},
    "error of an async function": {"fn": afails},
    "error of on_result": {"on_result": fails},
    "stop_when": {"stop_when": bool},
    "stop_when, async function": {"fn": alen, "stop_when": bool},
    "partial": {"on_pressure": "partial", "breaker": refusing_after_one},
    "refusal": {"patience": 0, "breaker": refusing_after_one},
}


@pytest.mark.parametrize("how", LEAVING)
def test_a_job_closes_its_async_source_in_its_own_task(how):
    async def main():
        log = []
        options = {"fn": len, "chunk_size": 5, "max_block": None, "breaker": lambda: UNGUARDED} | LEAVING[how]
        options["breaker"] = options["breaker"]()
        source = witness(log)
        try:
            await aprocess_in_chunks(source, **options)
        except (OSError, ChunksRefusedError):
            pass
        assert log == [asyncio.current_task()] * 2

    asyncio.run(main())


def test_a_cancelled_job_closes_its_async_source_in_its_own_task():
    async def main():
        log, begun = [], asyncio.Event()

        async def work(chunk):
            begun.set()
            await asyncio.sleep(SOON)

        task = asyncio.create_task(aprocess_in_chunks(witness(log), work, chunk_size=5, breaker=UNGUARDED))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == [task] * 2

    asyncio.run(main())


@pytest.mark.parametrize("how", ["break", "time-out", "garbage"])
def test_chunks_close_their_async_source_in_the_task_that_read_it(how):
    async def main():
        log = []
        chunks = achunked(witness(log, pause=SOON if how == "time-out" else 0.0), 5)
        if how == "time-out":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(chunks), 0.001)
            await chunks.aclose()
        elif how == "break":
            async with chunks:
                async for _ in chunks:
                    break
        else:
            await anext(chunks)
            del chunks
            gc.collect()
            for _ in range(5):
                await asyncio.sleep(0)
        assert len(log) == 2
        assert log[0] is log[1]

    asyncio.run(main())


def test_chunks_closed_before_the_first_step_of_the_reading_task_close_a_source_that_had_begun():
    async def main():
        log = []

        async def source():
            try:
                yield 1
                yield 2
            finally:
                log.append("closed")

        begun = source()
        await anext(begun)
        chunks = achunked(begun, 5)
        first = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        first.cancel()
        await chunks.aclose()
        assert log == ["closed"]

    asyncio.run(main())


def test_an_error_in_closing_the_source_reaches_whoever_closes():
    async def source():
        try:
            yield 1
            yield 2
        finally:
            raise OSError("close broke")

    async def main():
        chunks = achunked(source(), 1)
        assert await anext(chunks) == [1]
        with pytest.raises(OSError, match="close broke"):
            await chunks.aclose()
        await chunks.aclose()

    asyncio.run(main())


def test_a_source_that_swallows_the_cancellation_is_not_read_on():
    async def main():
        given = []

        async def source():
            for number in range(100):
                given.append(number)
                try:
                    await asyncio.sleep(SOON if number == 3 else 0)
                except asyncio.CancelledError:
                    pass
                yield number

        chunks = achunked(source(), 50)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(chunks), 0.01)
        await chunks.aclose()
        assert len(given) == 4

    asyncio.run(main())


@pytest.mark.parametrize("fn", [len, alen])
def test_a_job_that_is_thrown_away_with_its_loop_goes_quietly(fn):
    async def source():
        yield 1
        await asyncio.get_running_loop().create_future()

    async def main():
        coroutine = aprocess_in_chunks(source(), fn, chunk_size=5, breaker=UNGUARDED)
        coroutine.send(None)
        coroutine.close()

    asyncio.run(main())


# ----- sync sources


def noting(log, count=100):
    try:
        yield from range(count)
    finally:
        log.append("closed")


def on_loop(items, fn, **options):
    return asyncio.run(aprocess_in_chunks(items, fn, max_block=None, **options))


@pytest.mark.parametrize("run", [process_in_chunks, on_loop])
@pytest.mark.parametrize("how", ["error", "stop_when", "partial", "refusal"])
def test_an_iterator_of_our_own_making_is_closed(run, how):
    log = []
    rows = Rows(log, make=noting)
    options = {"fn": len, "breaker": lambda: UNGUARDED} | LEAVING[how]
    options["breaker"] = options["breaker"]()
    try:
        run(rows, chunk_size=5, **options)
    except (OSError, ChunksRefusedError):
        pass

    assert rows.made is not None  # it is held here, so no counting of references has closed it
    assert log == ["closed"]


@pytest.mark.parametrize("run", [process_in_chunks, on_loop])
def test_a_generator_that_was_passed_is_closed_after_an_error(run):
    log = []
    source = noting(log)
    with pytest.raises(OSError, match="fn broke"):
        run(source, fails, chunk_size=5, breaker=UNGUARDED)

    assert log == ["closed"]
    assert list(source) == []


@pytest.mark.parametrize("run", [process_in_chunks, on_loop])
@pytest.mark.parametrize("how", ["stop_when", "partial", "refusal"])
def test_a_generator_that_was_passed_can_be_gone_on_with(run, how):
    log, done = [], []
    source = noting(log)
    options = {"fn": list, "on_result": done.extend, "breaker": lambda: UNGUARDED} | LEAVING[how]
    options["breaker"] = options["breaker"]()
    try:
        report = run(source, chunk_size=5, **options)
    except ChunksRefusedError as error:
        report = error.report

    assert log == []
    assert [*done, *report.pending, *source] == list(range(100))


@pytest.mark.parametrize("how", ["stop_when", "partial"])
def test_a_generator_that_nobody_else_holds_is_closed_with_the_job(how):
    log = []
    options = {"fn": len, "breaker": lambda: UNGUARDED} | LEAVING[how]
    options["breaker"] = options["breaker"]()
    process_in_chunks(noting(log), chunk_size=5, **options)

    gc.collect()
    assert log == ["closed"]


@pytest.mark.parametrize(
    "options", [{}, {"max_bytes": 200}, {"max_bytes": 5, "sizeof": lambda _: 1}], ids=["count", "bytes", "sizeof"]
)
def test_chunks_that_are_left_early_close_what_they_made_and_no_more(options):
    log = []
    rows = Rows(log, make=noting)
    chunks = chunked(rows, 5, **options)
    next(chunks)
    chunks.close()
    assert log == ["closed"]

    source = noting(log)
    chunks = chunked(source, 5, **options)
    first = next(chunks)
    chunks.close()
    assert [*first, *source] == list(range(100))


def test_slices_close_what_they_made_at_the_end():
    async def main():
        log = []
        rows = Rows(log, make=noting)
        async with LoopPacer() as pacer:
            assert [row async for part in pacer.slices(rows) for row in part] == list(range(100))
        assert log == ["closed"]

    asyncio.run(main())
