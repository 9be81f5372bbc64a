"""
Chunks from a sync or async iterable, for an event loop that stays responsive.

A class and not a generator: a cancelled or timed-out ``anext`` leaves it usable, and what was received is kept for the
next call. An async source is read by one task of its own, which reads at most one chunk ahead.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

from memguard.policy import slice_size
from memguard.streams._arguments import check_budget, check_count, check_seconds
from memguard.streams._basket import Basket
from memguard.streams._pacer import LoopPacer
from memguard.streams._pump import PIECE_SECONDS, Pump, Supply
from memguard.streams._reader import Reader, clear_own_frames
from memguard.streams._turns import running_loop
from memguard.streams._weighing import item_bytes
from memguard.units import ByteSize

T = TypeVar("T")


class achunked(Generic[T]):  # noqa: N801 - reads as the function that its sync twin is
    """
    Iterate over lists of *items*: ``async for chunk in achunked(source, 500): ...``.

    Close it (``async with``, or :meth:`aclose`) to leave early; that closes the source, too, in the task that read it.
    What was received before a cancellation or time-out comes with the next call; whatever the source raises comes
    after the partial chunk, also a cancellation of its own.

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
        RuntimeError: The running loop is not one of asyncio's; at the first chunk.
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
        self._basket: Basket[T] = Basket(check_count(size, "size"), check_budget(max_bytes), sizeof or item_bytes)
        self._max_block = check_seconds(max_block, "max_block")
        self._max_wait = None if max_wait is None else check_seconds(max_wait, "max_wait")
        self._supply = Supply(self._basket)
        self._pump: Pump[T] | None = None
        self._piece = 1
        self._reader: Reader[T] | None = None
        self._source: AsyncIterator[T] | None = None
        if isinstance(items, AsyncIterable):
            self._source = items.__aiter__()
            return
        if not isinstance(items, Iterable):
            raise TypeError(f"items is an iterable, sync or async; got {items!r}")
        if max_wait is not None:
            raise TypeError("max_wait needs an async source: a sync one is never waited for")
        self._reader = Reader(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        """Return the next chunk."""
        if not self._supply.ended and not self._basket.full:
            await self._fill()
        if self._basket:
            chunk = self._basket.take()
            if self._pump is not None:
                self._supply.room.set()
            return chunk
        self._raise_error()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """
        Stop reading, and close the source if it can be closed. What was not taken is dropped.

        Raises:
            BaseException: What closing the source raised; or what no closing may swallow, a KeyboardInterrupt or
                SystemExit of the source that nobody was told.
        """
        supply = self._supply
        supply.ended = True
        source, self._source = self._source, None
        if self._pump is not None:
            del source
            await self._pump.stop()
        elif self._reader is not None:
            self._reader.close(theirs=True)
        elif (aclose := getattr(source, "aclose", None)) is not None:
            await aclose()
        self._basket.clear()
        if not isinstance(supply.error, (KeyboardInterrupt, SystemExit)):
            supply.error = None
        if supply.error is None:
            supply.error, supply.closing_error = supply.closing_error, None
        self._raise_error()

    async def __aenter__(self) -> Self:
        """
        Begin.

        Raises:
            RuntimeError: The running loop is not one of asyncio's.
        """
        running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Abandoned in the middle (`break` without closing): its task must not wait for ever.
        pump: Pump[T] | None = getattr(self, "_pump", None)
        if pump is not None:
            pump.abandon()

    def _raise_error(self) -> None:
        """Raise what the source raised, once."""
        error, self._supply.error = self._supply.error, None
        try:
            if error is not None:
                clear_own_frames(error)
                raise error
        finally:
            # The traceback holds this frame: a frame that holds the error would make a circle.
            del error

    async def _fill(self) -> None:
        """Fill the basket, or find the end."""
        if self._reader is not None:
            await self._draw(self._reader)
            return
        if self._pump is None:
            running_loop()
            assert self._source is not None
            self._pump = Pump(self._source, self._supply, self._max_block)
            self._source = None
        await self._receive(self._pump)

    async def _draw(self, reader: Reader[T]) -> None:
        """Fill the basket from a sync source, in pieces between which the loop may have its turn."""
        basket, supply = self._basket, self._supply
        async with LoopPacer(self._max_block) as pacer:
            while not basket.full and not supply.ended:
                began = time.perf_counter()
                taken = self._draw_piece(reader)
                supply.ended = reader.ended
                supply.error, reader.error = reader.error, None
                if taken:
                    self._piece = slice_size(taken, time.perf_counter() - began, PIECE_SECONDS)
                await pacer.tick()

    def _draw_piece(self, reader: Reader[T]) -> int:
        basket = self._basket
        if not basket.weighs:
            return reader.draw(basket.items, min(basket.room, self._piece))
        before = len(basket.items)
        reader.feed(basket.fill, self._piece)
        return len(basket.items) - before

    async def _receive(self, pump: Pump[T]) -> None:
        """Wait until the pump has filled the basket, the source is at its end, or the time is up."""
        basket = self._basket
        while not basket.full and not self._supply.ended:
            self._supply.news.clear()
            left = None
            if self._max_wait is not None and basket.first_at is not None:
                left = basket.first_at + self._max_wait - time.monotonic()
                if left <= 0:
                    return
            await pump.wait(left)
