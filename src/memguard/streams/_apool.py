"""
Chunks at once on an event loop: an async function in tasks, or a sync one in an executor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, Generic, TypeVar

from memguard.streams._admission import aadmitted
from memguard.streams._held import Held
from memguard.streams._job import Job
from memguard.streams._pool import hand_over, submit
from memguard.streams._source import AsyncSource
from memguard.streams._window import Slot, Window

T = TypeVar("T")
R = TypeVar("R")


class AsyncPool(Generic[T, R]):
    """Runs a job with at most *width* chunks at once; what :class:`Pool` does, without blocking the loop."""

    def __init__(
        self,
        source: AsyncSource[T],
        fn: Callable[[list[T]], Any],
        job: Job[R],
        executor: Executor | None,
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
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Run until nothing is left or the job stops."""
        window, job = self._window, self._job
        try:
            while True:
                if len(window) < self._width and not job.stopping and await self._source.more():
                    await self._begin()
                elif window:
                    await self._collect()
                else:
                    return
        except GeneratorExit:
            raise
        except asyncio.CancelledError:
            await self._abandon(cancelled=True)
            raise
        except BaseException:
            await self._abandon(cancelled=False)
            raise

    async def _begin(self) -> None:
        window, job = self._window, self._job
        held = await aadmitted(job, lambda: window.count_running() > 0, lambda: self._collect(or_room=True))
        if held is None:
            return
        try:
            chunk = await self._source.take(job.size.items, job.chunk_bytes)
            count, kept = len(chunk.items), chunk.copy() if job.keeps_items else None
            future = self._submit(held, chunk.items)
        except BaseException:
            await held.aleave()
            raise
        window.add(Slot(chunk.index, count, held, future, kept))

    def _submit(self, held: Held, items: list[T]) -> Any:
        if self._executor is None:
            task = self._loop.create_task(_called(held, self._fn, items))
            task.add_done_callback(partial(_task_done, held, self._news))
            return task
        # Not wrapped in a future of asyncio: that keeps an error in a circle of callbacks.
        future = submit(self._executor, held, self._fn, items)
        future.add_done_callback(partial(_future_done, held, self._loop, self._news))
        return future

    async def _collect(self, *, or_room: bool = False) -> None:
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
                    await slot.held.aleave()
                return
            still = window.count_running()
            if or_room and (still < running or still == 0):
                return
            await self._news.wait()

    async def _abandon(self, *, cancelled: bool) -> None:
        """
        Start nothing more, cancel what can be cancelled and wait for it.

        A function that runs in an executor cannot be cancelled. After an error it is waited for; after a cancellation
        of the job it is not, and gives back what it holds when it is done.
        """
        slots = self._window.clear()
        for slot in slots:
            slot.future.cancel()
        if cancelled and self._executor is not None:
            slots = [slot for slot in slots if slot.future.done()]
        for slot in slots:
            while not slot.future.done():
                self._news.clear()
                await self._news.wait()
            await slot.held.aleave()


async def _called(held: Held, fn: Callable[[list[T]], Awaitable[R]], items: list[T]) -> R:
    return await held.arun(fn, items)


def _task_done(held: Held, news: asyncio.Event, task: asyncio.Task[Any]) -> None:
    held.release()
    if not task.cancelled():
        task.exception()  # seen: only the first error is the caller's
    news.set()


def _future_done(held: Held, loop: asyncio.AbstractEventLoop, news: asyncio.Event, _future: object) -> None:
    held.release()
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(news.set)
