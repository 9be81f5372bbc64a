"""
Where a job takes its chunks from: first what lies on the shelf, then the iterable.

Whether there is anything left is asked before the breaker is, by taking one item: a job whose items are done is done,
however full memory is. The rest of a chunk is taken once it is admitted, so that it does not take memory before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Generic, TypeVar

from memguard.policy import slice_size
from memguard.streams._pacer import LoopPacer
from memguard.streams._reader import Reader, clear_own_frames, without_own_frames
from memguard.streams._shelf import Chunk, Shelf
from memguard.streams._weighing import Filling

T = TypeVar("T")
_PIECE_SECONDS = 0.0002


class Source(Generic[T]):
    """Takes chunks from an iterable."""

    def __init__(self, items: Iterable[T], shelf: Shelf[T]) -> None:
        self._shelf = shelf
        self.reader = Reader(items)

    def more(self) -> bool:
        """Tell whether there is an item to be done; take one if none is at hand."""
        if not self._shelf:
            first: list[T] = []
            if self.reader.draw(first, 1):
                self._shelf.put(first)
        return bool(self._shelf)

    def take(self, size: int, budget: int | None) -> Chunk[T]:
        """Return the next chunk, after :meth:`more` said that there is one."""
        chunk = self._shelf.begin(size)
        if not self._shelf.is_last(chunk):
            return chunk
        items, before = chunk.items, len(chunk.items)
        if budget is None:
            self.reader.draw(items, size - before)
        else:
            filling = Filling(size, budget)
            filling.took(items)
            filling.fill(items, self.reader)
        self._shelf.grew(len(items) - before)
        return chunk

    def close(self, *, theirs: bool = False) -> None:
        """Let go of the source, as :meth:`Reader.close` does."""
        self.reader.close(theirs=theirs)


class AsyncSource(Generic[T]):
    """Takes chunks from an iterable, sync or async, and lets the loop have its turn between items."""

    def __init__(self, items: Iterable[T] | AsyncIterable[T], shelf: Shelf[T], max_block: float | None) -> None:
        self._shelf = shelf
        self.reader: Reader[T] | _AsyncReader[T]
        self.reader = _AsyncReader(items) if isinstance(items, AsyncIterable) else Reader(items)
        self._pacer = LoopPacer(max_block or 0.002)
        self._paced = max_block is not None
        self._piece = 1

    async def more(self) -> bool:
        """Tell whether there is an item to be done; take one if none is at hand."""
        if not self._shelf:
            first: list[T] = []
            if await self._draw(first, 1):
                self._shelf.put(first)
        return bool(self._shelf)

    async def take(self, size: int, budget: int | None) -> Chunk[T]:
        """Return the next chunk, after :meth:`more` said that there is one."""
        chunk = self._shelf.begin(size)
        if not self._shelf.is_last(chunk):
            return chunk
        before = len(chunk.items)
        async with self._pacer:
            await self._fill(chunk.items, size, budget)
        self._shelf.grew(len(chunk.items) - before)
        return chunk

    async def _fill(self, items: list[T], size: int, budget: int | None) -> None:
        filling = None if budget is None else Filling(size, budget)
        if filling is not None:
            filling.took(items)
        while wanted := size - len(items) if filling is None else filling.next_items():
            began = time.perf_counter()
            taken = await self._draw(items, min(wanted, self._piece))
            if not taken:
                return
            self._piece = slice_size(taken, time.perf_counter() - began, _PIECE_SECONDS)
            if filling is not None:
                filling.took(items[-taken:])
            if self._paced:
                await self._pacer.tick()

    async def _draw(self, into: list[T], wanted: int) -> int:
        if isinstance(self.reader, Reader):
            return self.reader.draw(into, wanted)
        return await self.reader.draw(into, wanted)

    async def close(self, *, theirs: bool = False) -> None:
        """
        Let go of the source.

        An async one is closed if it can be: left open, it would be closed by the loop in some other task. A sync one
        is treated as :meth:`Reader.close` says.
        """
        if isinstance(self.reader, Reader):
            self.reader.close(theirs=theirs)
        else:
            await self.reader.close()


class _AsyncReader(Generic[T]):
    """What :class:`Reader` is, for an async iterable; reads and closes in the task of its caller."""

    def __init__(self, items: AsyncIterable[T]) -> None:
        self._iterator: AsyncIterator[T] | None = items.__aiter__()
        self._cancelled_before = _cancellations()
        self.ended = False
        self.error: BaseException | None = None

    async def draw(self, into: list[T], wanted: int) -> int:
        """Append up to *wanted* items to *into*; return how many came. Fewer come at the end or before an error."""
        iterator = self._iterator
        if self.ended or iterator is None:
            return 0
        taken = 0
        try:
            async for item in iterator:
                into.append(item)
                taken += 1
                if taken >= wanted:
                    return taken
        except GeneratorExit:  # this coroutine is thrown away, too
            raise
        except BaseException as error:
            if self._we_are_cancelled():
                raise
            # Also a CancelledError: what it awaited was cancelled, and not this task.
            self.error = without_own_frames(error)
        self.ended = True
        if self._we_are_cancelled():
            # It swallowed the cancellation and ended: that is no end.
            raise asyncio.CancelledError
        return taken

    def _we_are_cancelled(self) -> bool:
        return _cancellations() > self._cancelled_before

    def raise_error(self) -> None:
        """Raise what ended the source, if it was an error, and forget it."""
        error, self.error = self.error, None
        try:
            if error is not None:
                clear_own_frames(error)
                raise error
        finally:
            del error

    async def close(self) -> None:
        """Close the source if it can be closed and is not at its end."""
        iterator, self._iterator = self._iterator, None
        aclose = getattr(iterator, "aclose", None)
        if aclose is not None and (not self.ended or self.error is not None):
            await aclose()


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
