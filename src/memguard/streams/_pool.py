"""
Chunks at once in an executor, driven from a thread that may block.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from memguard.streams._admission import admitted
from memguard.streams._held import Held
from memguard.streams._job import Job, call
from memguard.streams._source import Source
from memguard.streams._window import Slot, Window

T = TypeVar("T")
R = TypeVar("R")
_LOOK_SECONDS = 1.0
"""Nobody may tell of a chunk that is done: an exception of a signal handler may have come before that was arranged."""


def submit(executor: Executor, held: Held, fn: Callable[[list[T]], R], items: list[T]) -> Any:
    """Start *fn* in *executor*, in the scope of *held* where that is in this process, and return its future."""
    if _runs_in_threads(executor):
        # The context, too: what is held around the whole job is there to draw from.
        return executor.submit(contextvars.copy_context().run, held.run, call, fn, items)
    # A hold cannot travel to where this may run.
    return executor.submit(call, fn, items)


def copies_in(executor: Executor | None) -> int:
    """
    Return how many times a chunk is in memory while *executor* runs it.

    In another process of this machine, or another interpreter, four: its items here, what they are sent as, what
    arrives there, and the items made of it. One worker with chunks of 32 MiB took 105 MiB.
    """
    return 4 if isinstance(executor, (_pools("process", "ProcessPoolExecutor"), _interpreter_pools())) else 1


def _pools(module: str, name: str) -> Any:
    """Return a kind of pool of :mod:`concurrent.futures`, if anybody has loaded it: else nobody has one."""
    return vars(concurrent.futures).get(name) or getattr(sys.modules.get(f"concurrent.futures.{module}"), name, ())


def _interpreter_pools() -> Any:
    return _pools("interpreter", "InterpreterPoolExecutor")  # from 3.14


def _runs_in_threads(executor: Executor) -> bool:
    # A pool of interpreters is a pool of threads, too.
    return isinstance(executor, ThreadPoolExecutor) and not isinstance(executor, _interpreter_pools())


class Pool(Generic[T, R]):
    """Runs a job with at most *width* chunks at once in *executor*."""

    def __init__(
        self,
        source: Source[T],
        fn: Callable[[list[T]], R],
        job: Job[R],
        executor: Executor,
        width: int,
        *,
        ordered: bool,
    ) -> None:
        self._source = source
        self._fn = fn
        self._job = job
        self._executor = executor
        self._width = width
        self._window: Window[T, R] = Window(ordered=ordered)
        self._news = threading.Event()

    def run(self) -> None:
        """Run until nothing is left or the job stops; on an error start nothing more and wait for what runs."""
        window, job = self._window, self._job
        try:
            while True:
                if len(window) < self._width and not job.stopping and self._source.more():
                    self._begin()
                elif window:
                    self._collect()
                else:
                    return
        finally:
            self._abandon()

    def _begin(self) -> None:
        window, job = self._window, self._job
        held = admitted(job, lambda: window.count_running() > 0, lambda: self._collect(or_room=True))
        if held is None:
            return
        try:
            chunk = self._source.take(job.size.items, job.chunk_bytes)
            count, kept = len(chunk.items), chunk.copy() if job.keeps_items else None
            future = submit(self._executor, held, self._fn, chunk.items)
        except BaseException:
            held.leave()
            raise
        window.add(Slot(chunk.index, count, held, future, kept))
        future.add_done_callback(partial(_done, held, self._news))

    def _collect(self, *, or_room: bool = False) -> None:
        """Wait for a result that can be handed over, and do so; with *or_room*, until one chunk less runs at most."""
        window, job = self._window, self._job
        running = window.count_running()
        while True:
            self._news.clear()
            window.release_done()
            slot = window.pop_done(None if job.stopping else job.shelf.first_index)
            if slot is not None:
                try:
                    hand_over(slot, job)
                finally:
                    slot.held.leave()
                return
            still = window.count_running()
            if or_room and (still < running or still == 0):
                return
            self._news.wait(_LOOK_SECONDS)

    def _abandon(self) -> None:
        """Start nothing more, wait for what runs, give back what it held."""
        slots = self._window.clear()
        for slot in slots:
            slot.future.cancel()
        for slot in slots:
            while not slot.future.done():
                self._news.wait(_LOOK_SECONDS)
                self._news.clear()
            slot.held.leave()


def _done(held: Held, news: threading.Event, _future: object) -> None:
    held.release()
    news.set()


def hand_over(slot: Slot[T, R], job: Job[R]) -> None:
    """Book the result of a chunk that is done, or put its items back to be done again."""
    try:
        result = slot.result()
    except MemoryError:
        if not job.runs_again(slot.size):
            raise
        job.shelf.put_back(slot.again())
        return
    job.finished(slot.index, slot.size, result)
    job.chunk_over()
