"""
The same job on an event loop, which stays responsive.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar, cast

from memguard.policy import slice_size
from memguard.streams._admission import aadmitted
from memguard.streams._apool import AsyncPool
from memguard.streams._arguments import check_seconds
from memguard.streams._held import Held
from memguard.streams._job import Job, OnMemoryError, OnPressure, call, check_executor, raise_what_none_may_swallow
from memguard.streams._pacer import yield_to_loop
from memguard.streams._pool import copies_in
from memguard.streams._report import ChunkReport
from memguard.streams._source import AsyncSource
from memguard.streams._turns import running_loop
from memguard.units import ByteSize
from memguard.values import Gate, Progress

T = TypeVar("T")
R = TypeVar("R")


async def aprocess_in_chunks(
    items: Iterable[T] | AsyncIterable[T],
    fn: Callable[[list[T]], R] | Callable[[list[T]], Awaitable[R]],
    *,
    chunk_size: int | None = None,
    max_bytes: ByteSize | None = None,
    total: int | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_result: Callable[[R], object] | None = None,
    breaker: Gate | None = None,
    executor: Executor | None = None,
    concurrency: int = 1,
    ordered: bool = True,
    min_chunk_size: int | None = None,
    stop_when: Callable[[R], bool] | None = None,
    on_pressure: OnPressure = "shrink",
    patience: float | None = 60.0,
    on_memory_error: OnMemoryError = "raise",
    max_block: float | None = 0.002,
) -> ChunkReport[R]:
    """
    Do what :func:`process_in_chunks` does, without holding up the event loop.

    *items* may be async, and so may *fn*. An async *fn* gets whole chunks, *concurrency* of them at once. A sync one
    without an executor gets slices of about *max_block* seconds, at most *chunk_size* items, or whole chunks where
    *max_block* is None; the breaker is still asked once a chunk, and results are one for each call.

    An async source that ends in CancelledError although nobody cancelled this task is no complete one: what it gave is
    done, and the CancelledError is raised. One that is left early is always closed, by ``aclose()`` in this task:
    left open, the loop would close it in some other.

    The other arguments and the errors are those of :func:`process_in_chunks`.

    Raises:
        RuntimeError: The running loop is not one of asyncio's.
    """
    running_loop()
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
    width = check_executor(executor, concurrency, needed=not is_async)
    if is_async and executor is not None:
        raise TypeError("an async fn runs on the event loop; give an executor a sync one")
    job: Job[R] = Job(
        items,
        chunk_size=chunk_size,
        max_bytes=max_bytes,
        total=total,
        on_progress=on_progress,
        on_result=on_result,
        breaker=breaker,
        min_chunk_size=min_chunk_size,
        stop_when=stop_when,
        on_pressure=on_pressure,
        patience=patience,
        on_memory_error=on_memory_error,
    )
    job.copies = copies_in(executor)
    block = None if max_block is None else check_seconds(max_block, "max_block")
    source = AsyncSource(items, job.shelf, block)
    del items
    try:
        if is_async or executor is not None:
            await AsyncPool(source, fn, job, executor, width, ordered=ordered).run()
        else:
            await _sliced(source, cast("Callable[[list[T]], R]", fn), job, block)
    except GeneratorExit:  # thrown away with its loop: nothing can be awaited any more
        raise
    except BaseException:
        await source.close(theirs=not job.gave_up)
        raise_what_none_may_swallow(source.reader)
        raise
    await source.close()
    return job.conclude(source.reader)


async def _sliced(source: AsyncSource[T], fn: Callable[[list[T]], R], job: Job[R], max_block: float | None) -> None:
    """Run a sync *fn* on the loop."""
    slices = _Slices(source, fn, job, max_block)
    while not job.stopping and await source.more():
        held = await aadmitted(job, lambda: False, _nothing)
        if held is None:
            return
        try:
            await slices.do_chunk(held)
        finally:
            await held.aleave()
        job.chunk_over()


async def _nothing() -> None:
    pass


class _Slices:
    """Does a chunk in slices so short that the loop has its turn between them."""

    def __init__(
        self, source: AsyncSource[T], fn: Callable[[list[T]], R], job: Job[R], max_block: float | None
    ) -> None:
        self._source, self._fn, self._job = source, fn, job
        self._max_block = max_block
        self._length = 1

    async def do_chunk(self, held: Held) -> None:
        job = self._job
        left = job.size.items
        while left > 0 and not job.stopping and await self._source.more():
            done = await self._do_slice(held, left if self._max_block is None else min(self._length, left))
            # Where memory ran out, the slices of this chunk are shorter from now on.
            left = left - done if done else min(left, job.size.items)
            if self._max_block is not None:
                await yield_to_loop()

    async def _do_slice(self, held: Held, most: int) -> int:
        """Do up to *most* items; return how many were done, 0 where they have to be done again."""
        job = self._job
        chunk = await self._source.take(most, job.chunk_bytes)
        items = len(chunk.items)
        kept = chunk.copy() if job.keeps_items else None
        began = time.perf_counter()
        try:
            result = held.run(call, self._fn, chunk.items)
        except MemoryError:
            if kept is None or not job.runs_again(items):
                raise
            job.shelf.put_back(kept)
            self._length = job.size.items
            return 0
        job.finished(chunk.index, items, result)
        if self._max_block is not None:
            self._length = slice_size(items, time.perf_counter() - began, self._max_block)
        return items
