"""
What the C library's allocator of this process has in hand: the counts alone, since readings need them.

Only glibc is spoken to, and only where ``ctypes`` can be loaded: an interpreter beside the main one may refuse it.

See:
    ``man 3 mallinfo2`` (glibc 2.33 and newer).
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

PLATFORM: str = sys.platform  # as a plain string: a type checker on one platform shall read the code of all
_MARKS = {"jemalloc": "mallctl", "mimalloc": "mi_version", "tcmalloc": "MallocExtension_ReleaseFreeMemory"}
_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


@functools.cache
def c_library() -> Any:
    """Return what this process has loaded, as a library; None where Python cannot call into it."""
    try:
        import ctypes  # noqa: PLC0415 - loads only where it is needed, and not everywhere

        return ctypes.CDLL(None)
    except (ImportError, OSError, TypeError):  # Windows has no such library
        return None


@functools.cache
def preloaded() -> str | None:
    """Return the name of an allocator that stands in for the C library's, if there is one."""
    library = c_library()
    return next((name for name, mark in _MARKS.items() if hasattr(library, mark)), None)


@functools.cache
def glibc() -> Any:
    """Return the C library if it is glibc's and its malloc is the one in use, else None."""
    if PLATFORM != "linux" or preloaded():
        return None
    library = c_library()
    if not hasattr(library, "gnu_get_libc_version"):
        return None
    _declare(library)
    return library


def _declare(library: Any) -> None:
    import ctypes  # noqa: PLC0415 - where there is a library, there is ctypes

    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.open_memstream.restype = ctypes.c_void_p
    library.fclose.argtypes = [ctypes.c_void_p]
    library.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
    if hasattr(library, "mallinfo2"):
        fields = [(name, ctypes.c_size_t) for name in _FIELDS]
        library.mallinfo2.restype = type("MallInfo2", (ctypes.Structure,), {"_fields_": fields})


class HeapCounts(NamedTuple):
    """
    What the allocator counted.

    Attributes:
        free_bytes: Held free, resident or not.
        used_bytes: Handed out, mapped blocks included.
    """

    free_bytes: int
    used_bytes: int

    def kept_bytes(self, anon_bytes: int) -> int:
        """
        Return what of *anon_bytes*, the resident memory of this process, is held free.

        An upper bound: what is held free may be returned to the kernel already, and what is resident but not handed
        out may be Python's own blocks or stacks; it is the smaller of the two.
        """
        return max(0, min(self.free_bytes, anon_bytes - self.used_bytes))


def heap_counts() -> HeapCounts | None:
    """Return what the allocator counts now; None where it does not say. Takes a microsecond, or up to 0.1 ms."""
    library = glibc()
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    info = library.mallinfo2()
    return HeapCounts(int(info.fordblks), int(info.uordblks) + int(info.hblkhd))


def held_free_bytes() -> int | None:
    """Return what the allocator holds free, over all its arenas; None where it does not say."""
    counts = heap_counts()
    return None if counts is None else counts.free_bytes
