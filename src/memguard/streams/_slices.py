"""
Rows in lists so short that a computing task can give way in time, and so long that asking the clock costs little.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Generic, Self, TypeVar

from memguard.policy import slice_size
from memguard.streams._arguments import check_count
from memguard.streams._reader import Reader
from memguard.streams._turns import Turns

T = TypeVar("T")

_PART_SECONDS = 0.0001
"""Between two looks at the clock; handing out a list costs about a hundredth of it."""
_MOST_ROWS = 100_000


class Slices(Generic[T]):
    """Made by :meth:`LoopPacer.slices`; iterate over it once, with ``async for``."""

    def __init__(self, rows: Iterable[T], size: int | None, turns: Turns, max_block: float) -> None:
        self._size = None if size is None else check_count(size, "size")
        self._rows = Reader(rows)
        self._turns = turns
        self._max_block = max_block
        self._length = self._size or 1
        self._given = 0
        self._began = 0.0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        """Return the next rows, after others had their turn if it is theirs."""
        turns = self._turns
        now = time.perf_counter()
        if self._given and self._size is None:
            self._length = min(_MOST_ROWS, slice_size(self._given, now - self._began, _PART_SECONDS))
        if now - turns.began >= self._max_block and turns.others_wait():
            await turns.give_way()
            now = time.perf_counter()
        # The rows are made in here, so that counts, too.
        self._began = now
        part: list[T] = []
        self._given = self._rows.draw(part, self._length)
        if part:
            return part
        self._rows.close()
        self._rows.raise_error()
        raise StopAsyncIteration

    def __repr__(self) -> str:
        of: Any = "about 100 us" if self._size is None else f"{self._size} rows"
        return f"<Slices of {of}>"
