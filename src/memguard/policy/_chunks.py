"""
How large the next chunk, or the next slice of one, shall be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_CALM_CHUNKS = 4
"""So many chunks without trouble before it grows again; without a pause it would never settle."""


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """
    Halves when refused, doubles back after calm.

    Attributes:
        items: Size of the next chunk.
        smallest: It does not shrink below this.
        largest: It does not grow above this.
        calm: Chunks since the last trouble.
    """

    items: int
    smallest: int
    largest: int
    calm: int = 0

    def refused(self) -> ChunkSize | None:
        """Return the size to try next; None at the smallest."""
        return self.failed(self.items)

    def failed(self, items: int) -> ChunkSize | None:
        """Return the size to try next after a chunk of *items* did not fit; None where that was one of the smallest."""
        if items <= self.smallest:
            return None
        return replace(self, items=max(self.smallest, min(self.items, items // 2)), calm=0)

    def done(self) -> ChunkSize:
        """Return the size after a chunk went through."""
        if self.items >= self.largest:
            return self
        if self.calm + 1 < _CALM_CHUNKS:
            return replace(self, calm=self.calm + 1)
        return replace(self, items=min(self.largest, self.items * 2), calm=0)


def slice_size(items: int, seconds: float, target_seconds: float) -> int:
    """
    Return how many items to hand over next so that it takes about *target_seconds*.

    Args:
        items: How many the last slice had; it took *seconds*.
        seconds: What they took.
        target_seconds: What the next shall take.
    """
    # At most twice as many as were measured: the next may be slower.
    if seconds * 2 <= target_seconds:
        return items * 2
    return max(1, int(items * target_seconds / seconds))
