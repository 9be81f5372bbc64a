"""
Of what kind the memory of this process is, by counters that cost next to nothing.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Literal, TypeAlias

from memguard.relief import heap_counts
from memguard.sampling import memory_usage, status_bytes

GrowthKind: TypeAlias = Literal[
    "python objects", "native", "freed but kept", "mapped or fragmented", "file mapped", "shared", "none"
]

_LEAST_BYTES = 64 * 1024
_MOST_BYTES_TO_A_BLOCK = 4096
"""
Objects of up to 512 bytes are blocks of Python's own allocator; what hangs on them, lists and buffers, is malloc's.
With more than this to each new block it is not objects that grow.
"""


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """
    What the memory of this process consists of. A figure that nobody gives here is None.

    Attributes:
        rss_bytes: Resident.
        anon_bytes: Of it heap, stacks and private mappings.
        file_bytes: Of it pages of files.
        shared_bytes: Of it shared memory, ``mmap.mmap(-1, n)`` included.
        python_blocks: Live blocks of Python's allocator for small objects.
        malloc_in_use_bytes: Handed out by malloc.
        kept_bytes: Freed, and kept resident by malloc: an upper bound.
    """

    rss_bytes: int
    anon_bytes: int
    file_bytes: int | None
    shared_bytes: int | None
    python_blocks: int | None
    malloc_in_use_bytes: int | None
    kept_bytes: int | None


def read_parts() -> MemoryParts:
    """
    Return what this process consists of now.

    Raises:
        SamplingError: The machine does not say how large it is.
    """
    usage, heap, pid = memory_usage(), heap_counts(), os.getpid()
    return MemoryParts(
        rss_bytes=usage.rss_bytes,
        anon_bytes=status_bytes(pid, "RssAnon") or usage.anon_bytes,
        file_bytes=status_bytes(pid, "RssFile"),
        shared_bytes=status_bytes(pid, "RssShmem"),
        python_blocks=sys.getallocatedblocks() or None,
        malloc_in_use_bytes=None if heap is None else heap.used_bytes,
        kept_bytes=None if heap is None else heap.kept_bytes(usage.anon_bytes),
    )


def kind_of_growth(before: MemoryParts, after: MemoryParts) -> GrowthKind:
    """Return the kind that most of the growth is of."""
    anon = after.anon_bytes - before.anon_bytes
    in_use = _change(before.malloc_in_use_bytes, after.malloc_in_use_bytes)
    kept = _change(before.kept_bytes, after.kept_bytes)
    growth: dict[GrowthKind, int] = {
        "file mapped": _change(before.file_bytes, after.file_bytes),
        "shared": _change(before.shared_bytes, after.shared_bytes),
        "freed but kept": kept,
        "native": in_use,
        "mapped or fragmented": anon - in_use - kept,
    }
    kind = max(growth, key=lambda each: growth[each])
    if growth[kind] < _LEAST_BYTES:
        return "none"
    if kind in ("native", "mapped or fragmented"):
        # Small objects live in mappings of Python's own, and their larger parts in malloc: they show in both.
        blocks = _change(before.python_blocks, after.python_blocks)
        if blocks > 0 and max(anon, in_use) <= blocks * _MOST_BYTES_TO_A_BLOCK:
            return "python objects"
    return kind


def next_step(kind: GrowthKind) -> str:
    """Return what to do about growth of *kind*."""
    return _NEXT_STEPS[kind]


_NEXT_STEPS: dict[GrowthKind, str] = {
    "python objects": (
        "look at what holds the types above: caches without a bound, listeners never removed, tasks never finished; "
        "take_snapshot(trace_seconds=30) names the lines that allocate them"
    ),
    "native": (
        "large buffers or native code: look for arrays, bytes and connections that are kept; "
        "`memray run --native -o out.bin PROGRAM`, then `memray flamegraph --leaks out.bin`, shows the calls"
    ),
    "freed but kept": "no leak: the allocator keeps it; release_memory() returns it, limit_arenas() early prevents it",
    "mapped or fragmented": (
        "neither objects nor malloc: look for private mappings and thread stacks; if objects come and go in great "
        "numbers it is fragmentation, which release_memory() may ease and a new process ends"
    ),
    "file mapped": "pages of mapped files: the kernel takes them back when it needs them; usually nothing to do",
    "shared": "shared memory: look for segments in /dev/shm and anonymous shared mappings that nobody closes",
    "none": "nothing",
}


def _change(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else after - before
