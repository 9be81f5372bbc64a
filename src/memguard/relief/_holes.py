"""
The holes in glibc's heap: free chunks that a trim cannot give back, since they share their pages with what is in use.

Whoever wants to see in the resident size what is allocated next takes them first: it comes from the top of the heap
then, which a trim did give back. Only the main arena is looked at; threads other than the main one have their own.
"""

from __future__ import annotations

from collections.abc import Callable

from memguard.sampling import glibc, heap_counts

_LARGEST_BYTES = 100_000
"""Less than is mapped one by one; larger holes are taken in pieces."""
_LEAST_BYTES = 528
"""Python's own allocator has its own holes below."""
_MOST_CHUNKS = 100_000


class Holes:
    """The holes that were taken; until :meth:`release`."""

    def __init__(self) -> None:
        self._chunks: list[int] = []

    def take(self) -> int:
        """Take the holes; return how many. None where the allocator is not glibc's. Takes 1 us for each."""
        library, counts = glibc(), heap_counts()
        if library is None or counts is None:
            return 0
        import ctypes  # noqa: PLC0415 - where there is a library, there is ctypes

        library.sbrk.restype, library.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
        top = (library.sbrk(0) or 0) - int(library.mallinfo2().keepcost)
        size = _LARGEST_BYTES
        # From the largest down: each size finds what the larger ones left.
        while size >= _LEAST_BYTES and len(self._chunks) < _MOST_CHUNKS:
            self._take_of(library.malloc, size, top, min(_MOST_CHUNKS, counts.free_bytes // size + 1))
            size = size * 3 // 4
        return len(self._chunks)

    def _take_of(self, malloc: Callable[[int], int | None], size: int, top: int, most: int) -> None:
        for _ in range(most):
            chunk = malloc(size)
            if chunk is not None:
                self._chunks.append(chunk)
            if chunk is None or chunk >= top:
                return

    def release(self) -> None:
        """Free what was taken; a second call does nothing."""
        while self._chunks:
            glibc().free(self._chunks.pop())
