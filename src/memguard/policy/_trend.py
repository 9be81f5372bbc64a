"""
How fast a process grows, with an interval, and when it arrives at its limit.

Times are seconds, sizes bytes. Slopes are medians over all pairs of floors, so that a few outliers do not move them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from memguard.policy._floors import BLOCKS, LEVELS

_MOMENT = 1e-6
"""Two samples that are closer than so many seconds have no slope between them."""
_NORMAL_95 = 1.96
"""So many standard deviations to each side hold 95 % of a normal distribution."""


class Mark(NamedTuple):
    """
    The lowest and the highest sample of one block.

    Attributes:
        low_at: When the process was smallest, in seconds.
        low_bytes: Its size then.
        high_at: When it was largest, in seconds.
        high_bytes: Its size then.
    """

    low_at: float
    low_bytes: int
    high_at: float
    high_bytes: int

    def with_sample(self, seconds: float, nbytes: int) -> Mark:
        """Return the mark of the block with one more sample."""
        if nbytes < self.low_bytes:
            return Mark(seconds, nbytes, self.high_at, self.high_bytes)
        if nbytes > self.high_bytes:
            return Mark(self.low_at, self.low_bytes, seconds, nbytes)
        return self

    def joined(self, later: Mark) -> Mark:
        """Return the mark of this block and a *later* one together."""
        low = later if later.low_bytes < self.low_bytes else self
        high = later if later.high_bytes > self.high_bytes else self
        return Mark(low.low_at, low.low_bytes, high.high_at, high.high_bytes)


class Marks:
    """The last twelve marks on each time scale; shares the levels of `Ladder`."""

    __slots__ = ("_pending", "scales")

    def __init__(self) -> None:
        self.scales: list[list[Mark]] = [[] for _ in range(LEVELS)]
        self._pending: list[Mark | None] = [None] * LEVELS

    def add(self, mark: Mark) -> None:
        """Add the mark of the shortest block, and hand every second one up."""
        for level, marks in enumerate(self.scales):
            marks.append(mark)
            if len(marks) > BLOCKS:
                del marks[0]
            first = self._pending[level]
            if first is None:
                self._pending[level] = mark
                return
            self._pending[level] = None
            mark = first.joined(mark)


class Trend(NamedTuple):
    """
    A slope in bytes per second.

    Attributes:
        slope: The middle.
        low: The lower end of its 95 % interval.
        high: The upper end.
    """

    slope: float
    low: float
    high: float


def trend_of(marks: Sequence[Mark]) -> Trend:
    """
    Return the slope of the floors of *marks*, and its 95 % interval.

    See:
        P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968): the median of the
        slopes of all pairs; the interval lies between two ranks of them, from the variance of Kendall's statistic.
    """
    slopes = sorted(
        (later.low_bytes - earlier.low_bytes) / (later.low_at - earlier.low_at)
        for index, earlier in enumerate(marks)
        for later in marks[index + 1 :]
        if later.low_at - earlier.low_at > _MOMENT
    )
    pairs = len(slopes)
    if not pairs:
        return Trend(0.0, 0.0, 0.0)
    count = len(marks)
    half_width = _NORMAL_95 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18) / 2
    low = max(0, math.floor(pairs / 2 - half_width))
    high = min(pairs - 1, math.ceil(pairs / 2 + half_width))
    middle = (slopes[(pairs - 1) // 2] + slopes[pairs // 2]) / 2
    return Trend(middle, slopes[low], slopes[high])


def seconds_until(limit_bytes: int, marks: Sequence[Mark], slope: float, now: float) -> float:
    """
    Return the seconds until a process that grows by *slope* bytes per second meets *limit_bytes* with its peaks.

    It is the peak that is killed, not the floor: each block's highest sample is carried forward to *now*.
    """
    peak = max(mark.high_bytes + slope * (now - mark.high_at) for mark in marks)
    return max(0.0, (limit_bytes - peak) / slope)
