"""
Who can give memory back by holding less: caches, mostly. They are known weakly; whoever dies is forgotten.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Protocol


class Shrinkable(Protocol):
    """What can hold less."""

    @property
    def shrink_under_pressure(self) -> bool:
        """Whether it may be made smaller."""
        ...

    def held_bytes(self) -> int:
        """Return about how many bytes it holds."""
        ...

    def value_per_byte(self) -> float:
        """Return how useful a byte of it was lately: hits, say."""
        ...

    def give_back(self, nbytes: int) -> int:
        """Hold about *nbytes* less; return how many it gave."""
        ...


class Shrinkables:
    """All of them. Safe in threads: each operation on the dict is atomic, and nothing of theirs runs under a lock."""

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Shrinkable]] = {}
        self._numbers = itertools.count()

    def add(self, shrinkable: Shrinkable) -> None:
        """Know *shrinkable* as long as it lives."""
        number = next(self._numbers)
        forget: Callable[[object], object] = lambda _: self._references.pop(number, None)  # noqa: E731
        self._references[number] = weakref.ref(shrinkable, forget)

    def alive(self) -> list[Shrinkable]:
        """Return those that live."""
        return [each for reference in list(self._references.values()) if (each := reference()) is not None]

    def held_bytes(self) -> int:
        """Return what all of them hold, those included that may not be made smaller."""
        return sum(each.held_bytes() for each in self.alive())

    def shrinkable_bytes(self) -> int:
        """Return what those hold that may be made smaller."""
        return sum(each.held_bytes() for each in self.alive() if each.shrink_under_pressure)

    def shrink(self, nbytes: int) -> int:
        """
        Have about *nbytes* given back, by the least useful first; return how many were.

        None gives more than half of what it holds before all have given.
        """
        given = 0
        least_useful_first = sorted(
            (each for each in self.alive() if each.shrink_under_pressure), key=lambda each: each.value_per_byte()
        )
        for share in (0.5, 1.0):
            for each in least_useful_first:
                if given >= nbytes:
                    return given
                given += each.give_back(min(nbytes - given, round(each.held_bytes() * share)))
        return given


shrinkables = Shrinkables()
"""Those of this process."""
