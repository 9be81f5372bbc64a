"""
The same job on an event loop, which stays responsive.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from memguard.errors import MemoryCircuitBreakerError
from memguard.policy import slice_size
from memguard.streams._chunked import weigh
from memguard.streams._job import Job, OnPressure, Stopped, call, check_executor
from memguard.streams._pacer import LoopPacer, check_max_block, yield_to_loop
from memguard.streams._report import ChunkReport
from memguard.units import ByteSize
from memguard.values import Gate, Hold, Progress

T = TypeVar("T")
R = TypeVar("R")
_PIECE_SECONDS = 0.0002


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
    max_block: float | None = 0.002,
) -> ChunkReport[R]:
    """
    Do what :func:`process_in_chunks` does, without holding up the event loop.

    *items* may be async, and so may *fn*. An async *fn* gets whole chunks, *concurrency* of them at once. A sync one
    without an executor gets slices of about *max_block* seconds, at most *chunk_size* items, or whole chunks where
    *max_block* is None; the breaker is still asked once a chunk, and results are one for each call.

    The other arguments and the errors are those of :func:`process_in_chunks`.
    """
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
    )
    block = None if max_block is None else check_max_block(max_block)
    async with _Source(items, job, block) as source:
        if is_async or executor is not None:
            start = _starter(fn, executor)
            complete = await _at_once(source, start, job, width, ordered=ordered)
        else:
            complete = await _sliced(source, cast("Callable[[list[T]], R]", fn), job, block)
    return job.end(complete=complete)


class _Source(Generic[T]):
    """Takes items, and lets the loop have its turn between them."""

    def __init__(self, items: Iterable[T] | AsyncIterable[T], job: Job[Any], max_block: float | None) -> None:
        self._items: AsyncIterator[T] | Iterator[T]
        if isinstance(items, AsyncIterable):
            self._items = items.__aiter__()
        else:
            self._items = iter(items)
        self._job = job
        self._pacer = LoopPacer(max_block or 0.002)
        self._paced = max_block is not None
        self._piece = 1
        self.index = 0

    async def __aenter__(self) -> _Source[T]:
        await self._pacer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pacer.__aexit__(None, None, None)

    async def take(self, count: int) -> list[T]:
        """Return up to *count* items, fewer where the byte budget is used up; none at the end."""
        budget = None if self._job.budget is None else max(1, self._job.needed_bytes)
        taken: list[T] = []
        weight = 0
        while len(taken) < count and (budget is None or weight < budget):
            wanted = min(self._piece, count - len(taken))
            began = time.perf_counter()
            part = await self._some(wanted)
            if not part:
                break
            taken += part
            if budget is not None:
                weight += weigh(part)
            self._piece = slice_size(len(part), time.perf_counter() - began, _PIECE_SECONDS)
            if budget is not None:
                # A sixteenth of the budget at a time, so that items which grow are noticed.
                self._piece = max(1, min(self._piece, int(budget / 16 / max(1, weight / len(taken)))))
            if self._paced:
                await self._pacer.tick()
        self.index += len(taken)
        return taken

    async def _some(self, count: int) -> list[T]:
        if not isinstance(self._items, AsyncIterator):
            return list(islice(self._items, count))
        part: list[T] = []
        async for item in self._items:
            part.append(item)
            if len(part) >= count:
                break
        return part


@contextlib.asynccontextmanager
async def _admitted(job: Job[R]) -> AsyncIterator[None]:
    """Ask until the next chunk is admitted; hold what it needs."""
    async with contextlib.AsyncExitStack() as stack:
        while True:
            hold: Hold | None
            try:
                hold = job.ask()
                if hold is not None:
                    await stack.enter_async_context(hold)
            except MemoryCircuitBreakerError as error:
                waited = job.refused(error)
                if waited is None:
                    continue
                await stack.enter_async_context(waited)
            break
        yield


async def _sliced(source: _Source[T], fn: Callable[[list[T]], R], job: Job[R], max_block: float | None) -> bool:
    """Run a sync *fn* on the loop; tell whether the source came to its end."""
    piece = 1
    try:
        while not job.stopping:
            async with _admitted(job):
                left = job.size.items
                while left and not job.stopping:
                    if max_block is None:
                        piece = left
                    began = source.index
                    items = await source.take(min(piece, left))
                    if not items:
                        if left < job.size.items:
                            job.chunk_over()
                        return True
                    start = time.perf_counter()
                    job.finished(began, len(items), call(fn, items))
                    left -= len(items)
                    if max_block is not None:
                        piece = slice_size(len(items), time.perf_counter() - start, max_block)
                        await yield_to_loop()
            job.chunk_over()
    except Stopped:
        pass
    return False


def _starter(fn: Any, executor: Executor | None) -> Callable[[list[Any]], Awaitable[Any]]:
    if executor is None:
        return lambda items: _called(fn, items)
    return lambda items: asyncio.wrap_future(executor.submit(call, fn, items))


async def _called(fn: Callable[[list[T]], Awaitable[R]], items: list[T]) -> R:
    return await fn(items)


@dataclass(frozen=True, slots=True, eq=False)
class _Running(Generic[R]):
    future: asyncio.Future[R]
    index: int
    items: int
    stack: contextlib.AsyncExitStack


async def _at_once(
    source: _Source[T], start: Callable[[list[T]], Awaitable[R]], job: Job[R], width: int, *, ordered: bool
) -> bool:
    """Run at most *width* chunks at once; tell whether the source came to its end."""
    running: deque[_Running[R]] = deque()
    complete = False
    try:
        try:
            while not job.stopping:
                if len(running) >= width:
                    await _collect(running, job, ordered=ordered)
                    continue
                if not await _start(source, start, job, running):
                    complete = True
                    break
        except Stopped:
            pass
        while running:
            await _collect(running, job, ordered=ordered)
    finally:
        await _abandon(running)
    return complete


async def _start(
    source: _Source[T],
    start: Callable[[list[T]], Awaitable[R]],
    job: Job[R],
    running: deque[_Running[R]],
) -> bool:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_admitted(job))
        index = source.index
        items = await source.take(job.size.items)
        if not items:
            return False
        future = asyncio.ensure_future(start(items))
        running.append(_Running(future, index, len(items), stack.pop_all()))
    return True


async def _collect(running: deque[_Running[R]], job: Job[R], *, ordered: bool) -> None:
    waited = [running[0].future] if ordered else [each.future for each in running]
    done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    first = next(each for each in running if each.future in done)
    running.remove(first)
    async with first.stack:
        job.finished(first.index, first.items, first.future.result())
    job.chunk_over()


async def _abandon(running: deque[_Running[R]]) -> None:
    """After an error or a cancellation: stop what runs, give back what it held."""
    for each in running:
        each.future.cancel()
    if running:
        await asyncio.wait([each.future for each in running])
    for each in running:
        if not each.future.cancelled():
            each.future.exception()  # seen: only the first error is the caller's
        await each.stack.aclose()
    running.clear()
