"""
How large the next batch shall be, by level: 100, 50, 25.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise

from memguard.settings import settings
from memguard.values import Level

_CALM_BATCHES = 4
"""So many batches at level NORMAL before the next larger step is tried."""
_DEFAULT_BATCH = 100


class AdaptiveBatchSize:
    """
    A batch size that gives way under pressure: tell it the level before each batch, and when a batch failed.

    ``size = batch.observe(breaker.level)``. At WARNING the second step is the largest, at CRITICAL the last is taken.
    It grows back one step after four batches at level NORMAL. Not thread-safe: one for each job.

    Args:
        steps: Sizes in falling order; None takes 100, 50 and 25, or the same shares of ``MEMGUARD_BATCH_SIZE``.

    Raises:
        TypeError: A step is no integer.
        ValueError: There is none, one is below 1, or they do not fall.
    """

    def __init__(self, steps: Sequence[int] | None = None) -> None:
        self._steps = _default_steps() if steps is None else _checked(steps)
        self._index = 0
        self._calm = 0

    @property
    def size(self) -> int:
        """Items to the next batch."""
        return self._steps[self._index]

    def observe(self, level: Level) -> int:
        """Go by *level*; return the size of the next batch."""
        if level is Level.NORMAL:
            self._calm += 1
            if self._calm >= _CALM_BATCHES and self._index > 0:
                self._move(self._index - 1)
        else:
            least = 1 if level is Level.WARNING else len(self._steps) - 1
            self._move(min(len(self._steps) - 1, max(self._index, least)))
        return self.size

    def failed(self) -> bool:
        """Take the next smaller step after a batch that did not fit; tell whether there was one."""
        smaller = self._index + 1 < len(self._steps)
        self._move(self._index + smaller)
        return smaller

    def _move(self, index: int) -> None:
        self._index = index
        self._calm = 0

    def __repr__(self) -> str:
        return f"<AdaptiveBatchSize {self.size} of {self._steps}>"


def _default_steps() -> tuple[int, ...]:
    largest = settings().batch_size or _DEFAULT_BATCH
    return tuple(sorted({largest, max(1, largest // 2), max(1, largest // 4)}, reverse=True))


def _checked(steps: Sequence[int]) -> tuple[int, ...]:
    if any(isinstance(step, bool) for step in steps):
        raise TypeError(f"steps are whole numbers, got {steps!r}")
    sizes = tuple(operator.index(step) for step in steps)
    if not sizes or sizes[-1] < 1 or any(one <= other for one, other in pairwise(sizes)):
        raise ValueError(f"steps are sizes of 1 or more in falling order, such as (100, 50, 25); got {steps!r}")
    return sizes
