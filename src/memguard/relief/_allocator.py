"""
The C library's allocator: what it holds free, giving that back, and how many arenas it may make.

Only glibc is spoken to, and only where ``ctypes`` can be loaded. musl, macOS, Windows, and a preloaded jemalloc or
mimalloc have other rules; there every answer is "not here".

See:
    ``man 3 mallopt``, ``man 3 malloc_trim``, ``man 3 mallinfo2`` (glibc 2.33 and newer), ``man 3 malloc_info``.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from dataclasses import dataclass
from typing import Any

from memguard.logs import log
from memguard.sampling import glibc, preloaded

_PLATFORM: str = sys.platform  # as a plain string: a type checker on one platform shall read the code of all
# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_MANY_THREADS = 8
"""glibc settles how many arenas it may make once it has made eight."""


@dataclass(frozen=True, slots=True)
class AllocatorUsage:
    """
    What the C allocator of this process has in hand. A figure it does not give is None.

    Attributes:
        name: ``"glibc"``, ``"jemalloc"``, ``"mimalloc"``, ``"tcmalloc"``, ``"musl"``, ``"macos"``, ``"windows"`` or
            ``"unknown"``.
        in_use_bytes: Handed out, without the mapped blocks.
        free_bytes: Held without use, over all arenas. Part of it may be returned to the kernel already: a trim leaves
            it as it is.
        mapped_bytes: Handed out in blocks that are mapped one by one, and go back to the kernel when freed.
        arenas: How many there are, where somebody asked.
    """

    name: str
    in_use_bytes: int | None = None
    free_bytes: int | None = None
    mapped_bytes: int | None = None
    arenas: int | None = None


def _name() -> str:
    if _PLATFORM == "linux":
        if glibc() is not None:
            return "glibc"
        musl = "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "")
        return preloaded() or ("musl" if musl else "unknown")
    return {"darwin": "macos", "win32": "windows"}.get(_PLATFORM, "unknown")


def allocator_usage(*, count_arenas: bool = False) -> AllocatorUsage:
    """
    Return what the C allocator has handed out, and what it holds free.

    Python's own small objects live in blocks of its own that are not seen here, except where they came from malloc.
    Takes a microsecond, or up to 0.1 ms where the heap is fragmented.

    Args:
        count_arenas: Count the arenas, too; takes 0.2 ms.
    """
    library = glibc()
    if library is not None and hasattr(library, "mallinfo2"):
        info = library.mallinfo2()
        arenas = _count_arenas(library) if count_arenas else None
        return AllocatorUsage("glibc", info.uordblks, info.fordblks, info.hblkhd, arenas)
    if library is None and _PLATFORM != "linux":
        return _elsewhere()
    return AllocatorUsage(_name())


def _elsewhere() -> AllocatorUsage:
    try:
        import psutil  # noqa: PLC0415 - loads only where it is needed
    except ImportError:  # an interpreter beside the main one may refuse it
        return AllocatorUsage(_name())
    if not hasattr(psutil, "heap_info"):  # psutil 7.2 and newer
        return AllocatorUsage(_name())
    heap = psutil.heap_info()
    return AllocatorUsage(_name(), heap.heap_used, None, heap.mmap_used)


def _count_arenas(library: Any) -> int:
    import ctypes  # noqa: PLC0415 - where there is a library, there is ctypes

    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = library.open_memstream(ctypes.byref(text), ctypes.byref(size))
    if not stream:  # no memory for it
        return 0
    library.malloc_info(0, stream)
    library.fclose(stream)
    try:
        return ctypes.string_at(text.value or 0, size.value).count(b"<heap nr=")
    finally:
        library.free(text)


def trim() -> bool:
    """Give free pages back to the kernel; tell whether this allocator can. Drops the GIL while it works."""
    library = glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return True


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
    library = glibc()
    if library is None or _told("MALLOC_ARENA_MAX", "arena_max") is not None:
        return False
    threads = threading.active_count()
    if threads > _MANY_THREADS:
        log.info("too late to limit glibc's arenas: %d threads run; make the default breaker early", threads)
        return False
    if not library.mallopt(_M_ARENA_MAX, count):
        return False
    log.info("glibc makes at most %d arenas from now on, so that freed memory comes back", count)
    return True


def _told(variable: str, tunable: str) -> str | None:
    """Return what the user told glibc, in the variable or among the tunables; None if nothing."""
    said = os.environ.get(variable)
    for setting in os.environ.get("GLIBC_TUNABLES", "").split(":"):
        name, _, value = setting.partition("=")
        if name == f"glibc.malloc.{tunable}":
            said = value
    return said
