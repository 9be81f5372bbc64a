"""
What flows between the parts: frozen values that name their units.

Nothing here measures, decides or acts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """
    One look at memory: this process, and the level that binds it.

    Attributes:
        rss_bytes: Resident size of this process.
        anon_bytes: The part of it that no file backs: heap, stacks, shared memory.
        used_bytes: What cannot be reclaimed at the level that binds; other processes there included.
        limit_bytes: What *used_bytes* may not exceed.
        source: Where the limit comes from: ``"cgroup v1 /a/b"``, ``"rlimit data"``, ``"host"``, ``"explicit"``.
        at: When, in seconds of :func:`time.monotonic`.
        python_blocks: Live blocks of the Python allocator, where somebody asked for it.
        malloc_in_use_bytes: What the C allocator has handed out, where somebody asked for it.
        malloc_free_bytes: What it holds without use, where somebody asked for it.
    """

    rss_bytes: int
    anon_bytes: int
    used_bytes: int
    limit_bytes: int
    source: str
    at: float
    python_blocks: int | None = None
    malloc_in_use_bytes: int | None = None
    malloc_free_bytes: int | None = None

    @property
    def fraction(self) -> float:
        """Used part of the limit; 1.0 where the limit is 0."""
        return self.used_bytes / self.limit_bytes if self.limit_bytes else 1.0

    @property
    def percent(self) -> float:
        """Used part of the limit in percent."""
        return self.fraction * 100

    @property
    def headroom_bytes(self) -> int:
        """What is left below the limit; never negative."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """
    The tightest limit that applies to this process.

    Attributes:
        bytes: The limit.
        source: Where it comes from, as in :attr:`MemoryUsage.source`.
    """

    bytes: int
    source: str
