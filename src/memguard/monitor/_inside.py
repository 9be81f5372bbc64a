"""
What only the process itself can say: live Python blocks, the C allocator's counts, the work of the garbage collector.

Mostly a microsecond, but half a millisecond with 18 million blocks and 36 with 200,000 free chunks: so a reading that
was dear is not taken again before a thousand times its duration has passed.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from memguard.relief import heap_counts, shrinkables
from memguard.values import MemoryUsage

_T = TypeVar("_T")
_LONGEST_SHARE = 0.001


class Thrifty(Generic[_T]):
    """
    A reading that takes at most a thousandth of the time.

    Args:
        read: Takes it.
        clock: Seconds, monotonic: when it is due again.
        stopwatch: Seconds, monotonic: what it costs.
    """

    def __init__(
        self, read: Callable[[], _T], clock: Callable[[], float], stopwatch: Callable[[], float] = time.perf_counter
    ) -> None:
        self._read = read
        self._clock = clock
        self._stopwatch = stopwatch
        self._due_at = float("-inf")

    def __call__(self) -> _T | None:
        """Return the reading; None while it is not due."""
        now = self._clock()
        if now < self._due_at:
            return None
        began = self._stopwatch()
        value = self._read()
        self._due_at = now + (self._stopwatch() - began) / _LONGEST_SHARE
        return value


class Inside:
    """Adds to a reading what only the process itself can say."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._blocks = Thrifty(sys.getallocatedblocks, clock)
        self._heap = Thrifty(heap_counts, clock)
        # A cache that weighs nothing estimates: cheap for small values, dear for long lists.
        self._caches = Thrifty(shrinkables.held_bytes, clock)
        self._cached_bytes = 0

    def cached_bytes(self) -> int:
        """Return what the caches of this process hold, as of the last time that this was due."""
        told = self._caches()
        if told is not None:
            self._cached_bytes = told
        return self._cached_bytes

    def fill(self, usage: MemoryUsage) -> MemoryUsage:
        """Return *usage* with the counts that are due; the others stay None."""
        heap = self._heap()
        return replace(
            usage,
            # Without the allocator of its own (PYTHONMALLOC=malloc) Python counts nothing.
            python_blocks=self._blocks() or None,
            malloc_in_use_bytes=None if heap is None else heap.used_bytes,
            malloc_free_bytes=None if heap is None else heap.free_bytes,
        )


def full_collections() -> int:
    """Return how many collections of the oldest generation there were."""
    return int(gc.get_stats()[-1]["collections"])


class CollectorTime:
    """How long the garbage collector ran, while this is installed."""

    def __init__(self, stopwatch: Callable[[], float] = time.perf_counter) -> None:
        self._stopwatch = stopwatch
        self._began: float | None = None
        self.runs = 0
        self.seconds = 0.0

    def install(self) -> None:
        """Begin to listen."""
        if self._hear not in gc.callbacks:
            gc.callbacks.append(self._hear)

    def remove(self) -> None:
        """Listen no more."""
        try:
            while True:  # a signal handler may have come in between when it was installed
                gc.callbacks.remove(self._hear)
        except ValueError:
            self._began = None

    def _hear(self, phase: str, info: dict[str, Any]) -> None:  # noqa: ARG002 - the collector's signature
        if phase == "start":
            self._began = self._stopwatch()
        elif self._began is not None:
            self.seconds += self._stopwatch() - self._began
            self.runs += 1
            self._began = None
