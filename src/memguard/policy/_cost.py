"""
What a call costs in bytes, learned from the peaks of calls that were measured.

A measurement gives two bounds. The process grew by the lower one at least. But a call may also have reused pages that
were free and resident already, so it needed the upper one at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from memguard.units import ByteSize, parse_bytes

_MARGINS = (4.0, 2.0, 1.25)
"""The cost is taken so many times after one, two, and more measurements: trust grows as calls agree."""
_EAGER_SAMPLES = 8
_SAMPLE_EVERY = 16
_DECAY = 16


@dataclass(frozen=True, slots=True)
class LearnedCost:
    """
    The cost as far as it is known.

    Attributes:
        samples: Calls that were measured.
        nbytes: What a call was seen to need, without a margin.
    """

    samples: int = 0
    nbytes: int = 0

    def measured(self, low_bytes: int, high_bytes: int) -> LearnedCost:
        """Return what is known after a call that needed *low_bytes* at least and *high_bytes* at most."""
        # It rises at once and falls slowly: calls differ, and the next may be a large one.
        nbytes = self.nbytes - max(0, self.nbytes - high_bytes) // _DECAY
        return LearnedCost(self.samples + 1, max(nbytes, low_bytes))

    def booked_bytes(self, room_bytes: int) -> int:
        """
        Return what the next call shall reserve where *room_bytes* are left if nobody holds any.

        Nothing known, it is just over half of the room: one at a time, and others still find some. A cost above the
        room is cut to it, so that a call is tried alone rather than refused for ever.
        """
        if self.samples == 0:
            return room_bytes // 2 + 1
        margin = _MARGINS[min(self.samples, len(_MARGINS)) - 1]
        return max(1, min(int(self.nbytes * margin), room_bytes))

    def wants(self, call: int) -> bool:
        """Tell whether the call of number *call* shall be measured."""
        return self.samples < _EAGER_SAMPLES or call % _SAMPLE_EVERY == 0


def cost_bytes(cost: ByteSize | float) -> int:
    """
    Return what a piece of work costs in whole bytes: a size, or a number that somebody computed, rounded up.

    Raises:
        TypeError: *cost* is neither a number nor text.
        ValueError: It is negative, infinite or not a number, or a text that is no size.
    """
    if isinstance(cost, float):
        if not 0 <= cost < math.inf:
            raise ValueError(f"{cost!r} is not a cost; it is a number of bytes, 0 or more")
        return math.ceil(cost)
    return parse_bytes(cost)
