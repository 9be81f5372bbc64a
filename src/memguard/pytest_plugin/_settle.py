"""
Brings the heap to a state from which growth shows.

What is allocated shows in the resident size only where it touches pages that were not resident. Free memory that is
resident would hide it: garbage, free pages of malloc, and free blocks of Python's own allocator. The first is
collected, the second given back. The third cannot be given back as long as one block of its arena is in use; so it is
taken, and held until the measurement is over. (So are malloc's holes, by :class:`memguard.relief.Holes`.)
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from memguard.relief import trim

# Objects/obmalloc.c
_LARGEST_BLOCK = 512
_STEP = 16
_POOL_BYTES = 16 * 1024
_ARENA_BYTES = 1024**2
_BLOCKS_TO_A_POOL = _POOL_BYTES // _LARGEST_BLOCK
_BYTES_HEADER = sys.getsizeof(b"")
_TWO_DIGITS = str(1 << 40)

_LEFT_POOLS = 10
"""
So many free pools are left: for what a test leaves behind. Else that would be the only thing in an arena of its own,
and the process would grow by an arena with each test that is measured.
"""

_MOST_BYTES = 256 * 1024**2
"""So much free memory is taken at most; it costs 20 ms for 64 MiB."""


def settle() -> None:
    """Collect garbage and give malloc's free pages back."""
    gc.collect()
    trim()


def hold_free_blocks() -> object:
    """
    Take all free blocks of Python's allocator but a few; return what holds them.

    Nothing is taken where this allocator is not in use (``PYTHONMALLOC=malloc``, free-threaded builds), or where the
    kernel does not say how much is mapped.
    """
    if not sys.getallocatedblocks() or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _take(statm)
    finally:
        os.close(statm)


def _take(statm: int) -> list[object] | None:
    # One list for all: what is made meanwhile would lie in the new arena itself, and draw other objects there.
    held: list[object] = []
    makers = [_maker(size) for size in range(_STEP, _LARGEST_BLOCK, _STEP)]
    arena = _take_free_pools(held, statm)
    if arena is None:
        return None
    for make in makers:
        _take_free_blocks(held, make, arena)
    # The first ones: of the fullest arenas, which nothing would free as a whole anyway.
    del held[: _LEFT_POOLS * _BLOCKS_TO_A_POOL]
    for make in makers:
        _take_pool_of(held, make, arena)
    return held


def _take_free_pools(held: list[object], statm: int) -> range | None:
    """Take the free pools, until the allocator maps a new arena; return where that is."""
    make = _maker(_LARGEST_BLOCK)
    for _ in range(_MOST_BYTES // _POOL_BYTES):
        before = _mapped_bytes(statm)
        held.extend(make() for _ in range(_BLOCKS_TO_A_POOL))
        if _mapped_bytes(statm) - before >= _ARENA_BYTES:
            start = id(held[-1]) & -_POOL_BYTES
            return range(start, start + _ARENA_BYTES)
    return None


def _take_free_blocks(held: list[object], make: Callable[[], object], arena: range) -> None:
    """Take the free blocks of a size in pools that are in use, until one comes from the new *arena*."""
    for _ in range(_MOST_BYTES // _LARGEST_BLOCK):
        block = make()
        if id(block) in arena:
            return
        held.append(block)


def _take_pool_of(held: list[object], make: Callable[[], object], arena: range) -> None:
    """Take the blocks of a size in the new *arena*, if a pool there is in use already: it would draw others to it."""
    for _ in range(_BLOCKS_TO_A_POOL * _LARGEST_BLOCK // _STEP):
        block = make()
        if id(block) not in arena:
            return
        held.append(block)


def _maker(size: int) -> Callable[[], object]:
    """Return what makes an object of exactly one block of *size* bytes, past the free lists of its type."""
    if size <= _STEP:
        return object
    if size <= _BYTES_HEADER:
        return lambda: int(_TWO_DIGITS)
    return lambda: bytes(size - _BYTES_HEADER)


def _mapped_bytes(statm: int) -> int:
    return int(os.pread(statm, 32, 0).split()[0]) * os.sysconf("SC_PAGESIZE")
