"""
The chunks of a job that run at once, in the order of their items. No waiting; threads and tasks look the same here.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from memguard.streams._held import Held
from memguard.streams._shelf import Chunk

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Slot(Generic[T, R]):
    """
    A chunk that runs.

    Attributes:
        index: Which item of the source its first one is.
        size: How many items it has.
        held: What it holds.
        future: Where its result comes from: a future of either kind; gone once that was asked for.
        kept: Its items, where they may be needed again.
    """

    index: int
    size: int
    held: Held
    future: Any
    kept: Chunk[T] | None

    def result(self) -> R:
        """Return what the function returned, or raise what it raised, after which nobody here knows that error."""
        future, self.future = self.future, None
        try:
            outcome: R = future.result()
            return outcome
        finally:
            # An error's traceback holds this frame: a frame that holds the future would make a circle.
            del future

    def again(self) -> Chunk[T]:
        """Return its items, to be done again."""
        assert self.kept is not None
        return self.kept


class Window(Generic[T, R]):
    """Slots by index. With *ordered*, results come out in this order."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._slots: list[Slot[T, R]] = []

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, slot: Slot[T, R]) -> None:
        """Add a chunk that runs from now on."""
        insort(self._slots, slot, key=lambda each: each.index)

    def count_running(self) -> int:
        """Return how many are not done."""
        return sum(not slot.future.done() for slot in self._slots)

    def release_done(self) -> None:
        """Give back what those hold that are done: their results may have to wait for earlier ones."""
        for slot in self._slots:
            if slot.future.done():
                slot.held.release()

    def pop_done(self, before: int | None) -> Slot[T, R] | None:
        """
        Take out one whose result may be handed over now; None if there is none.

        Args:
            before: Items from this index on have to wait for those that are still to be begun.
        """
        for at, slot in enumerate(self._slots):
            if self._ordered and (at > 0 or (before is not None and slot.index > before)):
                return None
            if slot.future.done():
                return self._slots.pop(at)
        return None

    def clear(self) -> list[Slot[T, R]]:
        """Take all out."""
        slots, self._slots = self._slots, []
        return slots
