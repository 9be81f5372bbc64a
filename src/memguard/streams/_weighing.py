"""
What items take in bytes, from some of them, and how many go into a chunk by that.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from memguard.interrupts import is_interrupt
from memguard.streams._reader import Reader

T = TypeVar("T")

_PARTS = 16
"""A chunk is weighed in parts of this fraction of its budget: items that grow fast are noticed within one."""
_WEIGHED_ITEMS = 16
_EMPTY_BYTES = sys.getsizeof(object())


def item_bytes(item: object) -> int:
    """
    Return about what *item* takes: itself and, one level down, what a row holds.

    Keys of a dict are left out: rows of one table share them. What cannot be weighed counts as an empty object.
    """
    try:
        size = sys.getsizeof(item)
        if isinstance(item, dict):
            size += sum(map(sys.getsizeof, item.values()))
        elif isinstance(item, (list, tuple)):
            size += sum(map(sys.getsizeof, item))
    except Exception as error:
        if is_interrupt(error):
            raise
        # A __sizeof__ of somebody's own that fails is no reason to lose the items that were taken with it.
        return _EMPTY_BYTES
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

    def fill(self, chunk: list[T], reader: Reader[T]) -> None:
        """Take from *reader* into *chunk* until it is full or nothing more comes."""
        while wanted := self.next_items():
            taken = reader.draw(chunk, wanted)
            if not taken:
                return
            self.took(chunk[-taken:])
