"""
Chunks from a sync or async iterable, for an event loop that stays responsive.

A class and not a generator: a cancelled or timed-out ``anext`` leaves it usable, and what was received is kept for the
next call. An async source is read by one task of its own from first item to close, so that a time-out never reaches
into it; that task reads at most one chunk ahead.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from memguard.policy import slice_size
from memguard.streams._chunked import check_budget, check_count, item_bytes
from memguard.streams._pacer import LoopPacer, check_max_block
from memguard.units import ByteSize

T = TypeVar("T")

_PIECE_SECONDS = 0.0001
"""Between two looks at the clock; a look costs a thousandth of it."""


class _Basket(Generic[T]):
    """What a source has given and nobody has taken yet."""

    def __init__(self, count: int, budget: int | None, sizeof: Callable[[T], int]) -> None:
        self._count = count
        self._budget = budget
        self._sizeof = sizeof
        self.items: list[T] = []
        self._bytes = 0
        self._spare: tuple[T, int] | None = None
        self.ended = False
        self.error: BaseException | None = None
        self.first_at: float | None = None

    @property
    def full(self) -> bool:
        """Whether the chunk is as large as it may be."""
        if self._spare is not None or len(self.items) >= self._count:
            return True
        return self._budget is not None and self._bytes >= self._budget

    @property
    def room(self) -> int:
        """Items that may be put in without looking, at most."""
        if self.full:
            return 0
        return 1 if self._budget is not None else self._count - len(self.items)

    def put(self, item: T) -> None:
        """Add *item*; one that would exceed the budget waits for the next chunk."""
        if self._budget is None:
            self.items.append(item)
            return
        size = self._sizeof(item)
        if self.items and self._bytes + size > self._budget:
            self._spare = item, size
            return
        self.items.append(item)
        self._bytes += size

    def take(self) -> list[T]:
        """Return the chunk and begin the next."""
        chunk, self.items, self._bytes = self.items, [], 0
        self.first_at = None
        if self._spare is not None:
            item, self._bytes = self._spare
            self._spare = None
            self.items.append(item)
            self.first_at = time.monotonic()
        return chunk


class achunked(Generic[T]):  # noqa: N801 - reads as the function that its sync twin is
    """
    Iterate over lists of *items*: ``async for chunk in achunked(source, 500): ...``.

    Close it (``async with``, or :meth:`aclose`) to leave early; that closes the source, too. What was received before
    a cancellation or time-out comes with the next call; an error of the source comes after the partial chunk.

    Args:
        items: A sync or async iterable.
        size: Most items to a chunk.
        max_bytes: Most bytes to a chunk, by *sizeof*; an item that is larger by itself has a chunk of its own.
        sizeof: What one item weighs; by default itself and, one level down, what it holds.
        max_wait: Seconds after its first item in which a chunk comes, full or not. Async sources only.
        max_block: Seconds that it may compute before others have their turn.

    Raises:
        TypeError: An argument is of another kind, *items* is no iterable, or *max_wait* comes with a sync one.
        ValueError: An argument is below what makes sense.
    """

    def __init__(
        self,
        items: Iterable[T] | AsyncIterable[T],
        size: int = 10_000,
        *,
        max_bytes: ByteSize | None = None,
        sizeof: Callable[[T], int] | None = None,
        max_wait: float | None = None,
        max_block: float = 0.002,
    ) -> None:
        self._basket: _Basket[T] = _Basket(check_count(size, "size"), check_budget(max_bytes), sizeof or item_bytes)
        self._max_block = check_max_block(max_block)
        self._max_wait = _check_max_wait(max_wait)
        self._pump: _Pump[T] | None = None
        self._source: Iterator[T] | AsyncIterator[T]
        self._piece = 1
        if isinstance(items, AsyncIterable):
            self._source = items.__aiter__()
            return
        if not isinstance(items, Iterable):
            raise TypeError(f"items is an iterable, sync or async; got {items!r}")
        if max_wait is not None:
            raise TypeError("max_wait needs an async source: a sync one is never waited for")
        self._source = iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        """Return the next chunk."""
        if not self._basket.ended and not self._basket.full:
            if isinstance(self._source, AsyncIterator):
                await self._receive(self._source)
            else:
                await self._draw(self._source)
        if self._basket.items:
            chunk = self._basket.take()
            if self._pump is not None:
                self._pump.room.set()
            return chunk
        error, self._basket.error = self._basket.error, None
        if error is not None:
            raise error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop reading, and close the source if it can be closed. What was not taken is dropped."""
        self._basket.ended = True
        self._basket.take()
        self._basket.items.clear()
        if self._pump is not None:
            await self._pump.stop()
        aclose = getattr(self._source, "aclose", None)
        if aclose is not None:
            await aclose()
        elif inspect.isgenerator(self._source):
            self._source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Abandoned in the middle (`break` without closing): its task must not wait for ever.
        pump: _Pump[T] | None = getattr(self, "_pump", None)
        if pump is not None:
            pump.abandon()

    async def _draw(self, source: Iterator[T]) -> None:
        """Fill the basket from a sync source, in pieces between which the loop may have its turn."""
        basket = self._basket
        async with LoopPacer(self._max_block) as pacer:
            while not basket.full and not basket.ended:
                self._draw_piece(source)
                await pacer.tick()

    def _draw_piece(self, source: Iterator[T]) -> None:
        basket = self._basket
        began = time.perf_counter()
        taken = 0
        try:
            while taken < self._piece and (room := basket.room):
                wanted = min(room, self._piece - taken)
                if wanted == 1:
                    basket.put(next(source))
                    taken += 1
                    continue
                before = len(basket.items)
                # Extends item by item: what came before an error stays.
                basket.items.extend(islice(source, wanted))
                got = len(basket.items) - before
                taken += got
                if got < wanted:
                    basket.ended = True
                    return
        except StopIteration:
            basket.ended = True
        except Exception as error:  # comes after the partial chunk
            basket.ended, basket.error = True, error
        if taken:
            self._piece = slice_size(taken, time.perf_counter() - began, _PIECE_SECONDS)

    async def _receive(self, source: AsyncIterator[T]) -> None:
        """Wait until the pump has filled the basket, the source is at its end, or the time is up."""
        if self._pump is None:
            self._pump = _Pump(source, self._basket, self._max_block)
        pump, basket = self._pump, self._basket
        while not basket.full and not basket.ended:
            pump.news.clear()
            left = None
            if self._max_wait is not None and basket.first_at is not None:
                left = basket.first_at + self._max_wait - time.monotonic()
                if left <= 0:
                    return
            await pump.wait(left)


class _Pump(Generic[T]):
    """
    One task that reads an async source into a basket.

    It does not know the iterator that is read from: so that one can be garbage, and stop it.
    """

    def __init__(self, source: AsyncIterator[T], basket: _Basket[T], max_block: float) -> None:
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(_pump(source, basket, max_block, self.news, self.room))

    async def wait(self, seconds: float | None) -> None:
        """Wait for news: the first item of a chunk, a full one, or the end."""
        if seconds is None:
            await self.news.wait()
            return
        timer = self._loop.call_later(seconds, self.news.set)
        try:
            await self.news.wait()
        finally:
            timer.cancel()

    async def stop(self) -> None:
        """End the task and wait for it."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def abandon(self) -> None:
        """End the task from wherever the garbage collector runs."""
        if not self._task.done() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)


async def _pump(
    source: AsyncIterator[T], basket: _Basket[T], max_block: float, news: asyncio.Event, room: asyncio.Event
) -> None:
    piece, taken, began = 1, 0, time.perf_counter()
    try:
        async with LoopPacer(max_block) as pacer:
            async for item in source:
                basket.put(item)
                if basket.first_at is None:
                    basket.first_at = time.monotonic()
                    news.set()
                while basket.full:
                    room.clear()
                    news.set()
                    await room.wait()
                taken += 1
                if taken >= piece:
                    now = time.perf_counter()
                    piece, taken, began = slice_size(taken, now - began, _PIECE_SECONDS), 0, now
                    await pacer.tick()
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # comes after the partial chunk, where the consumer is
        basket.error = error
        if not isinstance(error, Exception):
            raise
    finally:
        basket.ended = True
        news.set()


def _check_max_wait(max_wait: Any) -> float | None:
    if max_wait is None:
        return None
    if isinstance(max_wait, bool) or not isinstance(max_wait, (int, float)):
        raise TypeError(f"max_wait is a number of seconds, got {max_wait!r}")
    if not max_wait > 0:
        raise ValueError(f"max_wait is a number of seconds above 0, got {max_wait!r}")
    return float(max_wait)
