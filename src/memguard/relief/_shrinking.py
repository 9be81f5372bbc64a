"""
Who can give memory back by holding less: caches, mostly. They are known weakly; whoever dies is forgotten.

They are other people's code: one that raises, or tells a number that cannot be, is logged once and passed over.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from typing import NamedTuple, Protocol

from memguard.interrupts import is_interrupt
from memguard.logs import log


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


class _Offer(NamedTuple):
    """What one of them may give: how useful a byte of it is, its number, itself."""

    value_per_byte: float
    number: int
    shrinkable: Shrinkable


class Shrinkables:
    """All of them. Safe in threads: each operation on the dict is atomic, and nothing of theirs runs under a lock."""

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Shrinkable]] = {}
        self._numbers = itertools.count()
        self._odd: set[int] = set()

    def add(self, shrinkable: Shrinkable) -> None:
        """Know *shrinkable* as long as it lives."""
        number = next(self._numbers)
        references, odd = self._references, self._odd

        def forget(_: object) -> None:
            references.pop(number, None)
            odd.discard(number)

        references[number] = weakref.ref(shrinkable, forget)

    def alive(self) -> list[Shrinkable]:
        """Return those that live."""
        return [each for _, each in self._alive()]

    def held_bytes(self) -> int:
        """Return what all of them hold, those included that may not be made smaller."""
        return sum(self._held(number, each) for number, each in self._alive())

    def shrinkable_bytes(self) -> int:
        """Return what those hold that may be made smaller."""
        return sum(self._held(number, each) for number, each in self._alive() if self._may_shrink(number, each))

    def shrink(self, nbytes: int) -> int:
        """
        Have about *nbytes* given back, by the least useful first; return how many were.

        None gives more than half of what it holds before all have given.
        """
        given = 0
        offers = sorted(
            _Offer(self._number(number, each.value_per_byte), number, each)
            for number, each in self._alive()
            if self._may_shrink(number, each)
        )
        for share in (0.5, 1.0):
            for _, number, each in offers:
                if given >= nbytes:
                    return given
                held = self._held(number, each)
                asked = min(nbytes - given, round(held * share))
                given += min(held, self._given(number, each, asked)) if asked > 0 else 0
        return given

    def _alive(self) -> list[tuple[int, Shrinkable]]:
        known = self._references.copy().items()
        return [(number, each) for number, reference in known if (each := reference()) is not None]

    def _held(self, number: int, each: Shrinkable) -> int:
        return int(self._number(number, each.held_bytes))

    def _given(self, number: int, each: Shrinkable, nbytes: int) -> int:
        return int(self._number(number, lambda: each.give_back(nbytes)))

    def _may_shrink(self, number: int, each: Shrinkable) -> bool:
        return self._number(number, lambda: bool(each.shrink_under_pressure)) > 0

    def _number(self, number: int, ask: Callable[[], float]) -> float:
        """Return what *ask* tells; 0 where it raises, or tells less than nothing, or no number."""
        try:
            told = ask()
            if told >= 0 and math.isfinite(told):
                return told
            self._say_once(number, f"told {told!r}")
        except Exception as error:
            if is_interrupt(error):
                raise
            self._say_once(number, f"raised {type(error).__name__}")
        return 0

    def _say_once(self, number: int, what: str) -> None:
        if number in self._odd:
            return
        self._odd.add(number)
        reference = self._references.get(number)
        kind = type(None if reference is None else reference()).__name__
        log.warning("memguard: a %s that may hold memory %s; it is passed over where it does", kind, what)


shrinkables = Shrinkables()
"""Those of this process."""
