"""
Lists of at most so many items, and about so many bytes, from any iterable.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from memguard.units import ByteSize, parse_bytes

T = TypeVar("T")

_PARTS = 16
"""A chunk is weighed in parts of this fraction of its budget: items that grow fast are noticed within one."""
_WEIGHED_ITEMS = 16


def chunked(
    items: Iterable[T],
    size: int = 10_000,
    *,
    max_bytes: ByteSize | None = None,
    sizeof: Callable[[T], int] | None = None,
) -> Iterator[list[T]]:
    """
    Yield *items* in lists of at most *size*.

    Args:
        items: Any iterable; lists, tuples and ranges are sliced.
        size: Most items to a chunk.
        max_bytes: About the most bytes to a chunk. With *sizeof* it is held exactly, but for an item that is larger
            by itself and has a chunk of its own. Without, some items are weighed and the chunk may exceed the budget
            by a sixteenth, more where items suddenly grow.
        sizeof: What one item weighs in bytes; called for each item.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: *size* or *max_bytes* is below 1.
    """
    count = check_count(size, "size")
    budget = check_budget(max_bytes)
    if budget is None:
        if isinstance(items, (list, tuple, range)):
            return _slices(items, count)
        return _by_count(iter(items), count)
    if sizeof is not None:
        return _by_exact_bytes(iter(items), count, budget, sizeof)
    return _by_weighed_bytes(iter(items), count, budget)


def check_count(value: Any, name: str) -> int:
    """Return *value* as an int of at least 1; integers of any type will do."""
    if isinstance(value, bool):
        raise TypeError(f"{name} is a whole number of items, got {value!r}")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a whole number of items, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{name} is 1 or more, got {count}")
    return count


def check_budget(max_bytes: ByteSize | None) -> int | None:
    """Return *max_bytes* as bytes of at least 1, or None."""
    if max_bytes is None:
        return None
    budget = parse_bytes(max_bytes)
    if budget < 1:
        raise ValueError(f"max_bytes is 1 or more, got {max_bytes!r}")
    return budget


def item_bytes(item: object) -> int:
    """
    Return about what *item* takes: itself and, one level down, what a row holds.

    Keys of a dict are left out: rows of one table share them.
    """
    size = sys.getsizeof(item)
    if isinstance(item, dict):
        return size + sum(map(sys.getsizeof, item.values()))
    if isinstance(item, (list, tuple)):
        return size + sum(map(sys.getsizeof, item))
    return size


def weigh(items: list[T]) -> int:
    """Return about what *items* take together, from some of them."""
    step = max(1, len(items) // _WEIGHED_ITEMS)
    some = items[::step]
    return sum(map(item_bytes, some)) * len(items) // len(some)


class Filling:
    """How many items to take next for a chunk with a byte budget, by what the last part weighed."""

    def __init__(self, count: int, budget: int) -> None:
        self._count = count
        self._budget = budget
        self._item_bytes: float | None = None
        self.start()

    def start(self) -> None:
        """Begin a new chunk."""
        self._items = 0
        self._bytes = 0

    def next_items(self) -> int:
        """Return how many items to take next; 0 when the chunk is full."""
        room = self._budget - self._bytes
        if self._items >= self._count or (self._items and room < self._budget // _PARTS):
            return 0
        if self._item_bytes is None:
            return 1
        part = int(self._budget / _PARTS / max(1.0, self._item_bytes))
        return max(1, min(part, self._count - self._items))

    def took(self, items: list[Any]) -> None:
        """Count *items*, which were taken."""
        weight = weigh(items)
        self._items += len(items)
        self._bytes += weight
        self._item_bytes = weight / len(items)


def _slices(items: Any, count: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), count):
        yield list(items[start : start + count])


def _by_count(source: Iterator[T], count: int) -> Iterator[list[T]]:
    while chunk := list(islice(source, count)):
        yield chunk


def _by_exact_bytes(source: Iterator[T], count: int, budget: int, sizeof: Callable[[T], int]) -> Iterator[list[T]]:
    chunk: list[T] = []
    weight = 0
    for item in source:
        size = sizeof(item)
        if chunk and (len(chunk) >= count or weight + size > budget):
            yield chunk
            chunk, weight = [], 0
        chunk.append(item)
        weight += size
    if chunk:
        yield chunk


def _by_weighed_bytes(source: Iterator[T], count: int, budget: int) -> Iterator[list[T]]:
    filling = Filling(count, budget)
    chunk: list[T] = []
    while True:
        wanted = filling.next_items()
        part = list(islice(source, wanted)) if wanted else []
        if part:
            filling.took(part)
            chunk += part
            continue
        if chunk:
            yield chunk
        if wanted:
            return
        chunk = []
        filling.start()
