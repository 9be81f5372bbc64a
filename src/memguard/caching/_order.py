"""
In which order entries go.

A read marks its entry with the tick of the use, and no more; so it needs no lock, and nothing can break. The order is
made up for when an entry has to go: entries stand in lists by the tick at which they were last looked at, and those of
the oldest list that were read since move to the list of their tick.

An entry is put into its new place before it is taken out of the old one. So whoever is interrupted leaves it in two
places at worst, which does no harm, and the next goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Literal, TypeAlias

from memguard.caching._buckets import Buckets
from memguard.caching._entry import Entry, is_there

Policy: TypeAlias = Literal["lru", "sieve"]

SHIFT = 10
"""A list has the entries of so many ticks, as a power of two: it is sorted in one go."""
PATIENCE = 4096
"""
So many entries that were read since are passed over for one. After a time in which nearly all were read, the least
recently used of so many goes, instead of looking through a million first.
"""
_PART = 64
"""So many entries are looked at again by the next if one is interrupted."""
_used = attrgetter("used")


def last_use(entry: Entry) -> int:
    """Return the tick of the last use of *entry*."""
    return abs(entry.used)


class Order:
    """
    What both orders share. Only :meth:`add` and :meth:`last_victim` are for any thread at any time.

    Attributes:
        buckets: Entries by the tick at which they came or were looked at.
        victims: Those that go next, the first of them last; not those that were read since, or are gone.
        dropped: How many went without being victims since the lists were last swept.
    """

    __slots__ = ("_taken", "_taken_number", "buckets", "dropped", "victims")

    def __init__(self) -> None:
        self.dropped = 0
        self.victims: list[Entry] = []
        self.buckets = Buckets()
        self.rebuild(())

    def add(self, entry: Entry) -> None:
        """Take *entry* in, by its last use."""
        self.buckets.add(last_use(entry) >> SHIFT, entry)

    def rebuild(self, entries: Iterable[Entry]) -> None:
        """Begin anew with *entries*."""
        self.buckets.clear()
        self._taken: list[Entry] = []
        self._taken_number = -1
        self.victims.clear()
        for entry in entries:
            self.add(entry)

    def last_victim(self, passed: list[Entry], rest: list[object]) -> Entry | None:
        """
        Return the entry that goes next, which stays the last victim until it is gone.

        None, and one victim fewer, if that was read since or is gone. From any thread.
        """
        try:
            entry = self.victims[-1]
        except IndexError:
            return None
        if is_there(entry):
            if entry.used < 0:
                return entry
            self._pass_over(entry)
            passed.append(entry)
        rest.append(entry)
        # Without a call between: others take victims without the lock.
        if self.victims and self.victims[-1] is entry:
            del self.victims[-1]
        return None

    def least(self, passed: list[Entry]) -> Entry | None:
        """Return the one of *passed* whose last use is the longest ago."""
        entry = min(passed, key=last_use)
        entry.used = -abs(entry.used)
        self.victims.append(entry)
        return entry if is_there(entry) else None

    def _take(self) -> bool:
        """Take the list with the lowest number out; False if there is none."""
        number = self.buckets.lowest()
        if number is None:
            return False
        self._taken_number = number
        self._taken = self.buckets.lists[number]
        del self.buckets.lists[number]
        return True

    def find_victims(self, passed: list[Entry], rest: list[object], /) -> bool:
        """Look for victims where there are none left; return whether there is anything to go on with."""
        raise NotImplementedError

    def _pass_over(self, entry: Entry) -> None:
        """Give *entry*, which was read since it became a victim, its new place."""
        raise NotImplementedError

    def sweep(self, rest: list[object]) -> None:
        """Take those that are gone out of a part of the lists."""
        if self.buckets.sweep(rest):
            self.dropped = 0


class LeastRecentlyUsed(Order):
    """The least recently used entry goes first."""

    __slots__ = ("_unread",)

    def rebuild(self, entries: Iterable[Entry]) -> None:
        """Begin anew with *entries*."""
        self._unread: list[Entry] = []
        super().rebuild(entries)

    def find_victims(self, passed: list[Entry], rest: list[object], /) -> bool:
        if not self._taken and not self._unread and not self._take():
            return False
        taken, number, unread = self._taken, self._taken_number, self._unread
        rest += taken
        newest, before, in_order = -(number + 1 << SHIFT), -(number + 1 << SHIFT), not unread
        while taken:
            for entry in taken[: -_PART - 1 : -1]:
                used = entry.used
                if newest < used < 0:
                    unread.append(entry)
                    if used < before:
                        in_order = False
                    before = used
                elif is_there(entry):
                    in_order = False
                    self._look_at(entry, passed)
            del taken[-_PART:]
        if not in_order:
            unread.sort(key=_used)
        self.victims += unread
        self._unread = []
        return True

    def _look_at(self, entry: Entry, passed: list[Entry]) -> None:
        """Give *entry* the place of its last use."""
        used = entry.used
        if used > 0:
            entry.used = used = -used
        if -used >> SHIFT <= self._taken_number:
            self._unread.append(entry)
        else:
            self.add(entry)
            passed.append(entry)

    def _pass_over(self, entry: Entry) -> None:
        self.add(entry)


class Sieve(Order):
    """
    An entry that was not read since it was last looked at goes first.

    Those that were keep their place, and are looked at again once all others were.

    See:
        Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024.
    """

    __slots__ = ("_kept",)

    def rebuild(self, entries: Iterable[Entry]) -> None:
        """Begin anew with *entries*."""
        self._kept: list[Entry] = []
        super().rebuild(entries)

    def find_victims(self, _passed: list[Entry], rest: list[object], /) -> bool:
        if not self._taken and not self._take():
            self._taken, self._kept = self._kept, self._taken
        if not self._taken:
            return False
        rest += self._taken
        self._taken.reverse()
        self.victims += self._taken
        self._taken = []
        return True

    def _pass_over(self, entry: Entry) -> None:
        self._kept.append(entry)
        entry.used = -abs(entry.used)

    def sweep(self, rest: list[object]) -> None:
        """Take those that are gone out of a part of the lists."""
        super().sweep(rest)
        if self.dropped == 0:
            rest.append(self._kept)
            self._kept = [entry for entry in self._kept if is_there(entry)]


def order_of(policy: Policy) -> Order:
    """Return an empty order."""
    return Sieve() if policy == "sieve" else LeastRecentlyUsed()
