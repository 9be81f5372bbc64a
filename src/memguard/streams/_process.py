"""
A job over many items, chunk by chunk, heeding the breaker.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from memguard.errors import MemoryCircuitBreakerError
from memguard.streams._chunked import Filling
from memguard.streams._job import Job, OnPressure, Stopped, call, check_executor, held
from memguard.streams._report import ChunkReport
from memguard.units import ByteSize
from memguard.values import Gate, Progress

T = TypeVar("T")
R = TypeVar("R")


def process_in_chunks(
    items: Iterable[T],
    fn: Callable[[list[T]], R],
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
) -> ChunkReport[R]:
    """
    Call *fn* with lists of *items*, one after the other, and ask the breaker before each.

    Args:
        items: Any iterable; only as much of it is in memory as runs.
        fn: Does the work of one chunk. An error of it ends the job and reaches the caller.
        chunk_size: Items to a chunk: 10,000, or ``MEMGUARD_CHUNK_SIZE``.
        max_bytes: About the most bytes to a chunk; these are reserved while it runs.
        total: Items in all, for the progress; the length of *items* where it has one.
        on_progress: Called after each chunk and once at the end; one that raises is logged.
        on_result: Takes each result; the report then keeps none.
        breaker: Whom to ask; None is the default breaker, :data:`UNGUARDED` nobody.
        executor: Where to run *fn*: a thread pool, a process pool, or whatever has ``submit``.
        concurrency: How many chunks run at once in *executor*; no more are taken from *items*.
        ordered: Whether results come in the order of *items*, or as they are done.
        min_chunk_size: Chunks do not shrink below this; a quarter of *chunk_size* if None.
        stop_when: Called with each result; once it is true, no further chunk is taken.
        on_pressure: When a chunk is refused: ``"shrink"`` halves it down to *min_chunk_size* and raises then,
            ``"wait"`` waits for room, ``"partial"`` returns what is done, ``"raise"`` raises at once. Chunks grow
            back after some calm ones.

    Raises:
        ChunksRefusedError: Not even the smallest chunk was admitted; ``.report`` tells what is done.
        MemoryCircuitBreakerError: A chunk was refused, with ``on_pressure="raise"``.
        TypeError: An argument is of another kind.
        ValueError: An argument is below what makes sense, or *concurrency* has no executor.
    """
    width = check_executor(executor, concurrency, needed=True)
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
    source = _Source(iter(items), job)
    if executor is None:
        complete = _one_by_one(source, fn, job)
    else:
        complete = _in_executor(source, fn, job, executor, width, ordered=ordered)
    return job.end(complete=complete)


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk(Generic[T]):
    index: int
    items: list[T]


class _Source(Generic[T]):
    """Takes chunks of the job's present size from an iterator."""

    def __init__(self, source: Iterator[T], job: Job[R]) -> None:
        self._source = source
        self._job = job
        self._index = 0

    def take(self) -> _Chunk[T]:
        """Return the next chunk; an empty one at the end."""
        size, budget = self._job.size.items, self._job.needed_bytes
        items = list(islice(self._source, size)) if self._job.budget is None else self._weighed(size, max(1, budget))
        chunk = _Chunk(self._index, items)
        self._index += len(items)
        return chunk

    def _weighed(self, size: int, budget: int) -> list[T]:
        filling = Filling(size, budget)
        items: list[T] = []
        while wanted := filling.next_items():
            part = list(islice(self._source, wanted))
            if not part:
                break
            filling.took(part)
            items += part
        return items


@contextlib.contextmanager
def _admitted(job: Job[R]) -> Iterator[None]:
    """Ask until the next chunk is admitted; hold what it needs."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(job.ask()))
            except MemoryCircuitBreakerError as error:
                waited = job.refused(error)
                if waited is None:
                    continue
                stack.enter_context(waited)
            break
        yield


def _one_by_one(source: _Source[T], fn: Callable[[list[T]], R], job: Job[R]) -> bool:
    """Run the job in this thread; tell whether the source came to its end."""
    try:
        while not job.stopping:
            with _admitted(job):
                chunk = source.take()
                if not chunk.items:
                    return True
                job.finished(chunk.index, len(chunk.items), call(fn, chunk.items))
            job.chunk_over()
    except Stopped:
        pass
    return False


@dataclass(frozen=True, slots=True, eq=False)
class _Running(Generic[R]):
    future: Future[R]
    index: int
    items: int
    stack: contextlib.ExitStack


def _in_executor(
    source: _Source[T], fn: Callable[[list[T]], R], job: Job[R], executor: Executor, width: int, *, ordered: bool
) -> bool:
    """Run at most *width* chunks at once in *executor*; tell whether the source came to its end."""
    running: deque[_Running[R]] = deque()
    complete = False
    try:
        try:
            while not job.stopping:
                if len(running) >= width:
                    _collect(running, job, ordered=ordered)
                    continue
                if not _submit(source, fn, job, executor, running):
                    complete = True
                    break
        except Stopped:
            pass
        while running:
            _collect(running, job, ordered=ordered)
    finally:
        _abandon(running)
    return complete


def _submit(
    source: _Source[T],
    fn: Callable[[list[T]], R],
    job: Job[R],
    executor: Executor,
    running: deque[_Running[R]],
) -> bool:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_admitted(job))
        chunk = source.take()
        if not chunk.items:
            return False
        future = executor.submit(call, fn, chunk.items)
        running.append(_Running(future, chunk.index, len(chunk.items), stack.pop_all()))
    return True


def _collect(running: deque[_Running[R]], job: Job[R], *, ordered: bool) -> None:
    """Wait for the next chunk that is done: the oldest, or any."""
    if ordered:
        first = running[0]
    else:
        done = wait([each.future for each in running], return_when=FIRST_COMPLETED).done
        first = next(each for each in running if each.future in done)
    running.remove(first)
    with first.stack:
        job.finished(first.index, first.items, first.future.result())
    job.chunk_over()


def _abandon(running: deque[_Running[R]]) -> None:
    """After an error: start nothing more, wait for what runs, give back what it held."""
    for each in running:
        each.future.cancel()
    for each in running:
        with each.stack, contextlib.suppress(BaseException):
            each.future.result()
    running.clear()
