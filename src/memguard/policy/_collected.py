"""
What is left after full collections: floors of their own, for processes that seldom collect.

Garbage in cycles waits for the collector. While it does, the live blocks rise like a leak, and a leak beneath is
smaller than the swing; right after a collection there is only what is held. Where collections are frequent every block
of samples has one, and `Ladder` sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_FEWEST = 4
"""Collections that are judged together at least: three gains, or there is nothing to compare."""
_KEPT = 13
_LEAST_SHARE = 0.25
"""Each gain has this part of the mean gain at least ..."""
_MOST_SHARE = 2.5
"""... and this at most."""
_FADES_BELOW = 0.4
"""The growth fades if the last gain is below this part of the first."""
_NOISE_FACTOR = 3
"""
A sample comes up to an interval after the collection, so a floor is uncertain by what a sample adds. Growth below so
many times that is noise.
"""
_OVERDUE = 3
"""Growth that stands does so until this many times the usual time between collections has passed without one."""


class _Floor(NamedTuple):
    sample: int
    nbytes: int
    net: int


class Collected:
    """
    The floors after the last thirteen full collections.

    Args:
        least_spacing: Samples between two floors at least.
        least_span: Samples that growth must last.
        least_share: Growth below this share of the first floor is none.
        least_growth: Growth below this many bytes is none.

    Attributes:
        standing: They have risen evenly, and a collection is not overdue.
    """

    __slots__ = ("_drift", "_floors", "_least", "_runs", "_sample", "_spacing", "_span", "standing")

    def __init__(self, least_spacing: float, least_span: float, least_share: float, least_growth: int) -> None:
        self._spacing = least_spacing
        self._span = least_span
        self._least = (least_share, least_growth)
        self._floors: list[_Floor] = []
        self._sample = 0
        self._runs: int | None = None
        self._drift: int | None = None
        self.standing = False

    def see(self, nbytes: int, explained_bytes: int, runs: int) -> None:
        """Take one sample: the blocks in bytes, and the full collections so far."""
        self._sample += 1
        before, self._runs = self._runs, runs
        if before is not None and runs > before:
            self._collect(nbytes, explained_bytes)
        elif self._drift is None and self._floors:
            self._drift = max(0, nbytes - self._floors[-1].nbytes)
            self.standing = self._rises()
        if self.standing and self._overdue():
            self.standing = False

    def _collect(self, nbytes: int, explained_bytes: int) -> None:
        floors = self._floors
        if floors and self._sample - floors[-1].sample < self._spacing:
            return
        floors.append(_Floor(self._sample, nbytes, nbytes - explained_bytes))
        del floors[:-_KEPT]
        self._drift = None

    def _rises(self) -> bool:
        """Judge the fewest last floors that reach over the span."""
        for count in range(_FEWEST, len(self._floors) + 1):
            floors = self._floors[-count:]
            if floors[-1].sample - floors[0].sample >= self._span:
                share, growth = self._least
                least = max(growth, share * floors[0].nbytes, _NOISE_FACTOR * (self._drift or 0))
                return rises_evenly([floor.nbytes for floor in floors], least) and rises_evenly(
                    [floor.net for floor in floors], least
                )
        return False

    def _overdue(self) -> bool:
        floors = self._floors
        usual = (floors[-1].sample - floors[0].sample) / (len(floors) - 1)
        return self._sample - floors[-1].sample > _OVERDUE * usual


def rises_evenly(floors: Sequence[int], least_growth: float) -> bool:
    """Tell whether *floors* gain *least_growth* in all, with each step its part, and the last no less than before."""
    gains = [after - before for before, after in pairwise(floors)]
    growth = sum(gains)
    mean = growth / len(gains)
    return (
        growth >= least_growth
        and min(gains) >= _LEAST_SHARE * mean
        and max(gains) <= _MOST_SHARE * mean
        and gains[-1] >= _FADES_BELOW * gains[0]
    )
