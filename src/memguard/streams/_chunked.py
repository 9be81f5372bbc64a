"""
Lists of at most so many items, and about so many bytes, from any iterable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from memguard.streams._arguments import check_budget, check_count
from memguard.streams._basket import Basket
from memguard.streams._reader import Reader
from memguard.streams._weighing import Filling
from memguard.units import ByteSize

T = TypeVar("T")


def chunked(
    items: Iterable[T],
    size: int = 10_000,
    *,
    max_bytes: ByteSize | None = None,
    sizeof: Callable[[T], int] | None = None,
) -> Iterator[list[T]]:
    """
    Yield *items* in lists of at most *size*.

    An error of *items* comes after a last chunk of what it gave before. A generator that is passed is not closed when
    the chunks are left early: go on with it where they ended.

    Args:
        items: Any iterable; lists, tuples and ranges are sliced.
        size: Most items to a chunk.
        max_bytes: About the most bytes to a chunk. With *sizeof* it is held exactly, but for an item that is larger
            by itself and has a chunk of its own. Without, some items are weighed and the chunk may exceed the budget
            by a sixteenth, more where items suddenly grow.
        sizeof: What one item weighs in bytes; called for each item. An error of it counts as one of *items*; the item
            is in the last chunk.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: *size* or *max_bytes* is below 1.
    """
    count = check_count(size, "size")
    budget = check_budget(max_bytes)
    if budget is None:
        # Only these themselves: a class of one's own may iterate over something else than it slices.
        if type(items) in (list, tuple, range):
            return _slices(items, count)
        return _by_count(Reader(items), count)
    if sizeof is not None:
        return _by_exact_bytes(Reader(items), Basket(count, budget, sizeof))
    return _by_weighed_bytes(Reader(items), count, budget)


def _slices(items: Any, count: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), count):
        yield list(items[start : start + count])


def _by_count(reader: Reader[T], count: int) -> Iterator[list[T]]:
    try:
        while not reader.ended:
            chunk: list[T] = []
            if reader.draw(chunk, count):
                yield chunk
                chunk = []  # the consumer's alone from here on
    finally:
        reader.close()
    reader.raise_error()


def _by_exact_bytes(reader: Reader[T], basket: Basket[T]) -> Iterator[list[T]]:
    try:
        while basket or not reader.ended:
            if not basket.full:
                reader.feed(basket.fill)
            if basket:
                yield basket.take()
    finally:
        reader.close()
    reader.raise_error()


def _by_weighed_bytes(reader: Reader[T], count: int, budget: int) -> Iterator[list[T]]:
    filling = Filling(count, budget)
    try:
        while not reader.ended:
            chunk: list[T] = []
            filling.start()
            filling.fill(chunk, reader)
            if chunk:
                yield chunk
                chunk = []
    finally:
        reader.close()
    reader.raise_error()
