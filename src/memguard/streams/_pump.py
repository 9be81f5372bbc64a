"""
One task that reads an async source into a basket, from its first item to its close.

So a time-out of the consumer never reaches into the source, and the source is closed in the task that read it, as
cancel scopes and context variables in it need.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Generic, TypeVar

from memguard.policy import slice_size
from memguard.streams._basket import Basket
from memguard.streams._pacer import LoopPacer
from memguard.streams._reader import without_own_frames
from memguard.streams._turns import running_loop

T = TypeVar("T")

PIECE_SECONDS = 0.0001
"""Between two looks at the clock; a look costs a thousandth of it."""


class Supply(Generic[T]):
    """
    What the task that reads and the consumer share.

    Attributes:
        basket: What was read and not taken.
        news: Set when there is a first item, a full chunk, or the end.
        room: Set when a chunk was taken.
        begun: The task runs or has run.
        ended: Nothing more comes.
        leaving: The consumer has left.
        error: What the source raised, until it is handed over.
        closing_error: What closing it raised.
    """

    def __init__(self, basket: Basket[T]) -> None:
        self.basket = basket
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.begun = False
        self.ended = False
        self.leaving = False
        self.error: BaseException | None = None
        self.closing_error: BaseException | None = None


class Pump(Generic[T]):
    """
    Starts the task, waits for it, and ends it.

    It does not know the iterator that reads from the basket: so that one can be garbage, and end it.
    """

    def __init__(self, source: AsyncIterator[T], supply: Supply[T], max_block: float) -> None:
        self._loop = running_loop()
        self._supply = supply
        self._task = self._loop.create_task(_pump(source, supply, LoopPacer(max_block)))
        self._task.add_done_callback(partial(_cut_off, supply))

    async def wait(self, seconds: float | None) -> None:
        """Wait for news, *seconds* at most: the first item of a chunk, a full one, or the end."""
        news = self._supply.news
        if seconds is None:
            await news.wait()
            return
        timer = self._loop.call_later(seconds, news.set)
        try:
            await news.wait()
        finally:
            timer.cancel()

    async def stop(self) -> None:
        """End the task and wait until it has closed the source."""
        self._supply.leaving = True
        if self._supply.begun:
            # A task that is cancelled before its first step never runs, and would not close the source.
            self._task.cancel()
        await asyncio.wait([self._task])

    def abandon(self) -> None:
        """End the task from wherever the garbage collector runs."""
        self._supply.leaving = True
        if not self._task.done() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)


async def _pump(source: AsyncIterator[T], supply: Supply[T], pacer: LoopPacer) -> None:
    """Read until the end, an error, or the consumer leaves; never raise, for nobody looks at this task."""
    supply.begun = True
    try:
        if not supply.leaving:
            await _read(source, supply, pacer)
    except GeneratorExit:  # thrown away with its loop: nothing can be awaited any more
        raise
    except BaseException as error:
        # A cancellation, too: of the source's own, or of this task by a loop that shuts down. Nothing that is cut off
        # may look complete.
        if supply.leaving and not isinstance(error, asyncio.CancelledError):
            supply.closing_error = without_own_frames(error)
        else:
            supply.error = without_own_frames(error)
    await _close(source, supply)
    supply.ended = True
    supply.news.set()


async def _close(source: AsyncIterator[T], supply: Supply[T]) -> None:
    aclose = getattr(source, "aclose", None)
    if aclose is None:
        return
    try:
        await aclose()
    except GeneratorExit:
        raise
    except BaseException as error:
        supply.closing_error = without_own_frames(error)


def _cut_off(supply: Supply[Any], task: asyncio.Task[None]) -> None:
    """Tell whoever waits where the task was cancelled before its first step."""
    if task.cancelled() and not supply.ended:
        supply.ended = True
        supply.error = asyncio.CancelledError()
        supply.news.set()


async def _read(source: AsyncIterator[T], supply: Supply[T], pacer: LoopPacer) -> None:
    basket = supply.basket
    piece, taken, began = 1, 0, time.perf_counter()
    async with pacer:
        async for item in source:
            if supply.leaving:  # a source that swallowed the cancellation
                return
            basket.put(item)
            if basket.first_at is None:
                basket.first_at = time.monotonic()
                supply.news.set()
            while basket.full:
                supply.room.clear()
                supply.news.set()
                await supply.room.wait()
            taken += 1
            if taken >= piece:
                now = time.perf_counter()
                piece, taken, began = slice_size(taken, now - began, PIECE_SECONDS), 0, now
                await pacer.tick()
