"""
Items that were taken from a source and are not done yet. No reading, no waiting.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Chunk(Generic[T]):
    """
    Items that belong together.

    Attributes:
        index: Which item of the source the first one is, from 0.
        items: The items.
    """

    index: int
    items: list[T]

    def copy(self) -> Chunk[T]:
        """Return it with a list of its own: the one that a function gets is the function's, which may empty it."""
        return Chunk(self.index, self.items.copy())


class Shelf(Generic[T]):
    """Chunks in the order of the source, to be begun from the lowest."""

    def __init__(self) -> None:
        self._chunks: list[Chunk[T]] = []
        self._index = 0

    def __bool__(self) -> bool:
        """Whether there is anything to begin."""
        return bool(self._chunks)

    @property
    def first_index(self) -> int | None:
        """Which item would be begun next, if there is one."""
        return self._chunks[0].index if self._chunks else None

    @property
    def pending(self) -> tuple[T, ...]:
        """All that lies here, in order."""
        return tuple(item for chunk in self._chunks for item in chunk.items)

    def put(self, items: list[T]) -> None:
        """Add *items*, the next ones of the source."""
        self._chunks.append(Chunk(self._index, items))
        self._index += len(items)

    def put_back(self, chunk: Chunk[T]) -> None:
        """Add a chunk that was begun and has to be done again."""
        insort(self._chunks, chunk, key=lambda each: each.index)

    def begin(self, most: int) -> Chunk[T]:
        """Return the first chunk, *most* items of it; what is left stays here."""
        first = self._chunks.pop(0)
        if len(first.items) <= most:
            return first
        self._chunks.insert(0, Chunk(first.index + most, first.items[most:]))
        return Chunk(first.index, first.items[:most])

    def is_last(self, chunk: Chunk[T]) -> bool:
        """Tell whether the next item of the source follows on *chunk*."""
        return chunk.index + len(chunk.items) == self._index

    def grew(self, count: int) -> None:
        """Note that a chunk which is the last was filled up with *count* items of the source."""
        self._index += count
