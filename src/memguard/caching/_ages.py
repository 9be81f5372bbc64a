"""
When entries are over, in order: whoever asks looks at those that are, and at no others.

An entry whose end moves on stays where it is and is looked at too early; then it moves. So a store or a read that makes
an entry young costs nothing here. As in ``_order``, whoever is interrupted leaves an entry in two places at worst.
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections.abc import Iterable
from typing import TypeAlias, TypeGuard

from memguard.caching._buckets import Buckets
from memguard.caching._entry import NEVER, Entry, TimedEntry, is_there

_LISTS_A_LIFE = 1024
_LEAST_SECONDS = 0.001
_FARTHEST = 1e300
_Due: TypeAlias = tuple[float, int, TimedEntry]
"""The end with its sign turned, so that the first comes last; a number, so that no entries are compared; the entry."""


class Ages:
    """
    Entries by their end. For one thread at a time.

    Args:
        ttl: The usual time to live.

    Attributes:
        dropped: How many entries went since the lists were last swept.
        soonest: When somebody has to look: at the first end, or before.
    """

    __slots__ = ("_buckets", "_front", "_front_number", "_numbers", "_taken", "_width", "dropped", "soonest")

    def __init__(self, ttl: float | None) -> None:
        self._width = max((1.0 if ttl is None else ttl) / _LISTS_A_LIFE, _LEAST_SECONDS)
        self._numbers = itertools.count()
        self.dropped = 0
        self.rebuild(())

    def rebuild(self, entries: Iterable[Entry]) -> None:
        """Begin anew with *entries*."""
        self._buckets = Buckets()
        self._front: list[_Due] = []
        self._front_number = -1
        self.soonest = NEVER
        self._taken: list[Entry] = []
        for entry in entries:
            if isinstance(entry, TimedEntry):
                self._file(entry)

    def file_ahead(self, entry: TimedEntry) -> bool:
        """See to *entry*, from any thread, if its end is not among the next; return whether it was."""
        due = entry.expires
        place = due / self._width
        if not self._front_number < place - 1 < _FARTHEST or due < self.soonest:
            return False
        self._buckets.add(int(place), entry)
        entry.due = due
        return True

    def watch(self, entry: TimedEntry) -> None:
        """See to *entry*, whose end is set anew."""
        if entry.expires < entry.due:
            self._file(entry)

    def _file(self, entry: TimedEntry) -> None:
        due = entry.expires
        place = due / self._width
        self.soonest = min(self.soonest, due)
        if math.isfinite(place):
            number = int(place)
            if number > self._front_number:
                self._buckets.add(number, entry)
            else:
                insort(self._front, (-due, next(self._numbers), entry))
        entry.due = due

    def _first(self) -> float:
        if self._taken:
            return -NEVER
        if self._front:
            return -self._front[-1][0]
        number = self._buckets.lowest()
        return NEVER if number is None else number * self._width

    def first_over(self, now: float, rest: list[object]) -> TimedEntry | None:
        """
        Return an entry that is over, which stays the first until it is gone; None if there is none.

        Args:
            now: The time.
            rest: Takes what is to die outside of the lock.
        """
        while self._first() <= now:
            if self._taken or not self._front:
                self._bring_to_front(rest)
                continue
            due = self._front[-1]
            entry = due[2]
            if entry.due == -due[0] and is_there(entry):
                if entry.expires <= entry.due:
                    return entry
                self._file(entry)
            rest.append(due)
            if self._front and self._front[-1] is due:
                del self._front[-1]
        self.soonest = self._first()
        return None

    def _bring_to_front(self, rest: list[object]) -> None:
        number = self._buckets.lowest()
        if not self._taken and number is not None:
            self._front_number = number
            self._taken = self._buckets.lists[number]
            del self._buckets.lists[number]
        taken = self._taken
        rest += taken
        while taken:
            entry = taken[-1]
            if self._belongs_to_front(entry):
                self._front.append((-entry.due, next(self._numbers), entry))
            if len(taken) == 1:
                self._front.sort()
            del taken[-1]

    def _belongs_to_front(self, entry: Entry) -> TypeGuard[TimedEntry]:
        return (
            isinstance(entry, TimedEntry)
            and is_there(entry)
            and math.isfinite(entry.due)
            and int(entry.due / self._width) == self._front_number
        )

    def sweep(self, rest: list[object]) -> None:
        """Take those that are gone out of a part of the lists."""
        if self._buckets.sweep(rest):
            rest.append(self._front)
            self._front = [due for due in self._front if is_there(due[2])]
            self.dropped = 0
