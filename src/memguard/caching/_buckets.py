"""
Entries in lists that have numbers: which list is exact, the order inside of it is not until somebody needs it.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from memguard.caching._entry import Entry, is_there


class Buckets:
    """
    Lists of entries by number. Entries come in from any thread; only one at a time takes lists out.

    Attributes:
        lists: By number. To append to one of them in a single expression is one step, so that nothing is added to a
            list that was taken meanwhile.
    """

    __slots__ = ("_numbers", "_unswept", "lists")

    def __init__(self) -> None:
        self.lists: dict[int, list[Entry]] = {}
        self._numbers: list[int] = []
        self._unswept: list[int] = []

    def clear(self) -> None:
        """Hold nothing."""
        self.lists.clear()
        self._renumber()

    def add(self, number: int, entry: Entry) -> None:
        """Put *entry* into the list *number*."""
        while True:
            try:
                self.lists[number].append(entry)
                return
            except KeyError:
                self.lists.setdefault(number, [])
                heappush(self._numbers, number)

    def lowest(self) -> int | None:
        """Return the lowest number that has a list."""
        if len(self.lists) > len(self._numbers):  # whoever made a list was interrupted
            self._renumber()
        while self._numbers and self._numbers[0] not in self.lists:
            heappop(self._numbers)
        return self._numbers[0] if self._numbers else None

    def sweep(self, rest: list[object]) -> bool:
        """
        Take those that are gone out of one list; return whether that was the last.

        Args:
            rest: Takes what is to die outside of the lock.
        """
        if not self._unswept:
            self._unswept = list(self.lists)
        if self._unswept:
            self._sweep_list(self._unswept.pop(), rest)
        if not self._unswept:
            self._renumber()
        return not self._unswept

    def _sweep_list(self, number: int, rest: list[object]) -> None:
        before = self.lists.get(number, [])[:]
        count = len(before)
        rest.append(before)
        there = [entry for entry in before if is_there(entry)]
        if number in self.lists:
            self.lists[number][:count] = there  # others may have added to it meanwhile
            if not self.lists[number]:
                del self.lists[number]

    def _renumber(self) -> None:
        numbers = list(self.lists)
        heapify(numbers)
        self._numbers = numbers
