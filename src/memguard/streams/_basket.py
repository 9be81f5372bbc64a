"""
What a source has given and nobody has taken yet: at most one chunk, and the item that would have been too much for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Basket(Generic[T]):
    """
    Collects one chunk by count and, where there is a budget, by bytes.

    Attributes:
        items: The chunk so far.
        first_at: When its first item came, in seconds of :func:`time.monotonic`, where somebody noted it.
    """

    def __init__(self, count: int, budget: int | None, sizeof: Callable[[T], int]) -> None:
        self._count = count
        self._budget = budget
        self._sizeof = sizeof
        self._bytes = 0
        self._spare: tuple[T, int] | None = None
        self.items: list[T] = []
        self.first_at: float | None = None

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.items)

    @property
    def full(self) -> bool:
        """Whether the chunk is as large as it may be."""
        if self._spare is not None or len(self.items) >= self._count:
            return True
        return self._budget is not None and self._bytes >= self._budget

    @property
    def weighs(self) -> bool:
        """Whether items have to be put in one by one."""
        return self._budget is not None

    @property
    def room(self) -> int:
        """Items that go in by count."""
        return 0 if self.full else self._count - len(self.items)

    def put(self, item: T) -> None:
        """Add *item*, as :meth:`fill` does."""
        if self._budget is None:
            self.items.append(item)
        else:
            self.fill(iter((item,)), None)

    def fill(self, source: Iterator[T], most: int | None) -> bool:
        """
        Add items of *source*, *most* of them, until the chunk is full; tell whether more may follow.

        An item that would exceed the budget waits for the next chunk. An error of ``sizeof`` is the caller's; the
        item is in the chunk nevertheless.
        """
        items, count, budget, sizeof, weight = self.items, self._count, self._budget, self._sizeof, self._bytes
        before = len(items)
        try:
            for item in source if most is None else islice(source, most):
                if budget is not None:
                    try:
                        size = sizeof(item)
                    except BaseException:
                        items.append(item)
                        raise
                    if items and weight + size > budget:
                        self._spare = item, size
                        return True
                    weight += size
                items.append(item)
                if len(items) >= count or (budget is not None and weight >= budget):
                    return True
        finally:
            self._bytes = weight
        return most is not None and len(items) - before == most

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

    def clear(self) -> None:
        """Drop everything."""
        self.take()
        self.take()
