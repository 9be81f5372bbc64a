"""
A job over many items, chunk by chunk, heeding the breaker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

from memguard.streams._admission import admitted
from memguard.streams._held import Held
from memguard.streams._job import Job, OnMemoryError, OnPressure, call, check_executor, raise_what_none_may_swallow
from memguard.streams._pool import Pool, copies_in
from memguard.streams._report import ChunkReport
from memguard.streams._source import Source
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
    patience: float | None = 60.0,
    on_memory_error: OnMemoryError = "raise",
) -> ChunkReport[R]:
    """
    Call *fn* with lists of *items*, one after the other, and ask the breaker before each.

    The source is asked before the breaker, by taking one item: a job whose items are done is done. An error of the
    source is raised after the items before it are done. A generator that was passed is closed after an error of the
    job; after ``stop_when``, ``"partial"`` or a refusal it is yours to go on with, first with ``report.pending``.

    Args:
        items: Any iterable; only as much of it is in memory as runs.
        fn: Does the work of one chunk. An error of it ends the job and reaches the caller.
        chunk_size: Items to a chunk: 10,000, or ``MEMGUARD_CHUNK_SIZE``.
        max_bytes: About the most bytes to a chunk; these are reserved while it runs, for each of those that run at
            once; four times these in a process pool, where it is in memory as itself and as what is sent.
        total: Items in all, for the progress; the length of *items* where it has one.
        on_progress: Called after each chunk and once at the end; one that raises is logged.
        on_result: Takes each result; the report then keeps none.
        breaker: Whom to ask; None is the default breaker, :data:`UNGUARDED` nobody.
        executor: Where to run *fn*: a thread pool, a process pool, or whatever has ``submit``. In a thread pool *fn*
            sees the context variables of the caller.
        concurrency: How many chunks run at once in *executor*; no more are taken from *items*.
        ordered: Whether results come in the order of *items*, or as they are done.
        min_chunk_size: Chunks do not shrink below this; a quarter of *chunk_size* if None.
        stop_when: Called with each result; once it is true, no further chunk is taken.
        on_pressure: When a chunk is refused: ``"shrink"`` halves it down to *min_chunk_size*, then waits for chunks
            that run and up to *patience* for room, and raises then; ``"wait"`` waits for room, for ever;
            ``"partial"`` returns what is done; ``"raise"`` raises at once. Chunks grow back after some calm ones. What
            can never fit is not waited for.
        patience: Seconds without progress that ``"shrink"`` waits for room; None for ever. On the thread of a running
            event loop it does not wait: use :func:`aprocess_in_chunks` there.
        on_memory_error: When *fn* raises MemoryError: ``"raise"`` ends the job; ``"shrink"`` calls it again with
            halves of the same items, down to *min_chunk_size*. That is for a function without effects.

    Raises:
        ChunksRefusedError: Not even the smallest chunk was admitted; ``.report`` tells what is done.
        MemoryCircuitBreakerError: A chunk was refused, with ``on_pressure="raise"``, or can never fit, with
            ``"wait"``; it has a ``.report``, too.
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
        patience=patience,
        on_memory_error=on_memory_error,
    )
    job.copies = copies_in(executor)
    if on_pressure == "shrink" and _in_event_loop():
        job.patience = 0.0
    source = Source(items, job.shelf)
    del items  # a generator that nobody else holds is closed where the source lets go of it
    try:
        if executor is None:
            _one_by_one(source, fn, job)
        else:
            Pool(source, fn, job, executor, width, ordered=ordered).run()
    except BaseException:
        source.close(theirs=not job.gave_up)
        raise_what_none_may_swallow(source.reader)
        raise
    source.close()
    return job.conclude(source.reader)


def _one_by_one(source: Source[T], fn: Callable[[list[T]], R], job: Job[R]) -> None:
    """Run the job in this thread."""
    while not job.stopping and source.more():
        held = admitted(job)
        if held is None:
            return
        try:
            over = _do_chunk(source, fn, job, held)
        finally:
            held.leave()
        if over:
            job.chunk_over()


def _do_chunk(source: Source[T], fn: Callable[[list[T]], R], job: Job[R], held: Held) -> bool:
    """Do one chunk, or put it back. In a function of its own, so that nothing keeps the items while the next waits."""
    chunk = source.take(job.size.items, job.chunk_bytes)
    count = len(chunk.items)
    kept = chunk.copy() if job.keeps_items else None
    try:
        result = held.run(call, fn, chunk.items)
    except MemoryError:
        if kept is None or not job.runs_again(count):
            raise
        job.shelf.put_back(kept)
        return False
    job.finished(chunk.index, count, result)
    return True


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
