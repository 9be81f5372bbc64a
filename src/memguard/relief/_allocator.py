"""
The C library's allocator: what it holds free, and giving that back.

Only glibc is spoken to. musl, macOS, Windows, and a preloaded jemalloc or mimalloc have other rules; there every
answer is "not here".

See:
    ``man 3 malloc_trim``, ``man 3 mallinfo2`` (glibc 2.33 and newer).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from typing import Any

_log = logging.getLogger("memguard")
_M_ARENA_MAX = -8  # malloc.h


class _MallInfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


@functools.cache
def _glibc() -> Any:
    """Return the C library if it is glibc's and its malloc is the one in use, else None."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return None
    if hasattr(library, "mallctl") or hasattr(library, "mi_version"):
        return None
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _MallInfo2
    return library


def trim() -> bool:
    """Give free pages back to the kernel; tell whether this allocator can. Drops the GIL while it works."""
    library = _glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return True


def held_free_bytes() -> int | None:
    """Return what the allocator holds free, over all its arenas; None where it does not say."""
    library = _glibc()
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    return int(library.mallinfo2().fordblks)


def limit_arenas(count: int = 2) -> bool:
    """
    Let glibc make at most *count* arenas, for as many threads as there may be; tell whether it will.

    Each thread that meets a busy arena gets one of its own, up to eight a core, and what is freed in it stays with it:
    40 threads that had used 9 MiB each kept 192 MiB after a trim, and 11 MiB with two arenas. Arenas that exist stay;
    so call it early. Under the GIL it costs nothing that could be measured.

    Where the user has spoken (``MALLOC_ARENA_MAX``, or ``glibc.malloc.arena_max`` in ``GLIBC_TUNABLES``), and with any
    other allocator, nothing is changed.

    Raises:
        ValueError: *count* is below 1.
    """
    if count < 1:
        raise ValueError(f"an allocator needs an arena; count is 1 or more, got {count}")
    library = _glibc()
    said = "MALLOC_ARENA_MAX" in os.environ or "malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if library is None or said or not library.mallopt(_M_ARENA_MAX, count):
        return False
    _log.debug("glibc may make at most %d arenas from now on", count)
    return True
