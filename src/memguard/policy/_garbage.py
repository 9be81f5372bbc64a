"""
Garbage that waits for the collector, seen by how it goes.

Between two full collections the live blocks of a healthy process rise as steadily as those of a leak, and fall in one
sample when the collector has run. Who fell so once is expected to fall so again: until then the rise is explained.
"""

from __future__ import annotations

from collections.abc import Sequence

_LEAST_FALL_BYTES = 128 * 1024
_FALL_SHARE = 0.5
"""A fall that is not sudden, in one sample this part of the way at least, is load that goes."""
_LEAST_BLOCKS = 3
"""It takes back what grew over so many blocks of samples, or it is a spike that ends."""
_MOST_SWINGS = 2.5
"""The heap may have grown and be collected later than last time; more than so many times as much is not garbage."""
_MOST_PERIODS = 2
"""Nor is what has risen for so many times as long."""


class Garbage:
    """How much of the live blocks is taken to be garbage."""

    __slots__ = ("_base", "_before", "_samples", "_swing", "_until")

    def __init__(self) -> None:
        self._before = 0
        self._base = 0
        self._swing = 0
        self._samples = 0
        self._until = 0

    def see(self, nbytes: int, floors: Sequence[float], block_samples: int) -> int:
        """
        Take the next value of the blocks; return the bytes among them that are explained as garbage.

        Args:
            nbytes: Live blocks, in bytes.
            floors: Those of the last blocks of samples.
            block_samples: How many samples each of them spans.
        """
        self._samples += 1
        fall, self._before = self._before - nbytes, nbytes
        if fall >= _LEAST_FALL_BYTES:
            self._fell(fall, nbytes, floors, block_samples)
        if self._samples > self._until:
            return 0
        return max(0, min(nbytes - self._base, int(_MOST_SWINGS * self._swing)))

    def _fell(self, fall: int, nbytes: int, floors: Sequence[float], block_samples: int) -> None:
        taken_back, top = 0, 0.0
        for floor in reversed(floors):
            if floor <= nbytes:
                break
            taken_back += 1
            top = max(top, floor)
        if taken_back >= _LEAST_BLOCKS and fall >= _FALL_SHARE * (top - nbytes):
            self._base, self._swing = nbytes, fall
            self._until = self._samples + _MOST_PERIODS * taken_back * block_samples
