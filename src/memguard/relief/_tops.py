"""
The tops of glibc's arenas, which ``malloc_trim`` leaves alone.

Each arena may keep free memory at its top, up to twice the largest block that was freed (at most 64 MiB). Only the
main arena's is trimmed on demand. But whoever frees 64 KiB or more in an arena makes glibc look at that arena's top,
and give back what is above the trim threshold. So: lower the threshold, free such a block in each arena, and set the
threshold back. A new thread is attached to the next arena in turn once there may be no more of them; as many threads
as there are arenas, alive at the same time, meet each one.

Setting a threshold ends glibc's own adjusting of both. What is set afterwards is what that ends at with large blocks.

See:
    glibc's malloc/arena.c (``heap_trim``, ``reused_arena``) and malloc/malloc.c (``_int_free``).
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from memguard.relief._allocator import (
    _M_MMAP_THRESHOLD,
    _M_TRIM_THRESHOLD,
    _count_arenas,
    _told,
)
from memguard.sampling import glibc, held_free_bytes

_log = logging.getLogger("memguard")
_WORTH_BYTES = 8 * 1024**2
_BLOCK_BYTES = 100_000
"""Freed, it makes glibc look at the top: more than FASTBIN_CONSOLIDATION_THRESHOLD (64 KiB), less than is mapped."""
_LOW_THRESHOLD_BYTES = 1024**2
_MMAP_THRESHOLD_BYTES = 32 * 1024**2
_TRIM_THRESHOLD_BYTES = 2 * _MMAP_THRESHOLD_BYTES
_GLIBC_TRIM_THRESHOLD_BYTES = 128 * 1024
_MOST_THREADS = 64


class Tops:
    """Gives back the tops of arenas: all of them, or that of the calling thread's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said = False
        self._made_arenas = 0

    def give_back(self) -> bool:
        """Give back what all arenas keep at their tops; tell whether that was tried."""
        library = self._worth()
        if library is None or self._made_arenas > 1:
            return False
        arenas = _count_arenas(library)
        if not 1 < arenas <= _MOST_THREADS:
            return False
        with self._lock, _Lowered(library):
            _free_a_block_in_threads(library, arenas)
        # Arenas were made instead of met. Once, that may have been the last ones; twice, the limit is far, and each
        # living thread sits on its own.
        self._made_arenas += _count_arenas(library) > arenas
        self._say_once()
        return True

    def give_back_own(self) -> bool:
        """Give back what the calling thread's arena keeps at its top; tell whether that was tried."""
        library = self._worth()
        if library is None:
            return False
        with self._lock, _Lowered(library):
            _free_a_block(library)
        self._say_once()
        return True

    def _worth(self) -> Any:
        library = glibc()
        return library if library is not None and (held_free_bytes() or 0) >= _WORTH_BYTES else None

    def _say_once(self) -> None:
        if not self._said:
            self._said = True
            _log.info(
                "glibc held much free memory: gave back the tops of its arenas, and fixed the thresholds that it "
                "adjusts itself (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)"
            )


class _Lowered:
    """While entered, the trim threshold is low."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __enter__(self) -> None:
        self._library.mallopt(_M_TRIM_THRESHOLD, _LOW_THRESHOLD_BYTES)

    def __exit__(self, *error: object) -> None:
        mapped = _told("MALLOC_MMAP_THRESHOLD_", "mmap_threshold")
        trimmed = _bytes(_told("MALLOC_TRIM_THRESHOLD_", "trim_threshold"))
        if trimmed is None:
            trimmed = _TRIM_THRESHOLD_BYTES if mapped is None else _GLIBC_TRIM_THRESHOLD_BYTES
        self._library.mallopt(_M_TRIM_THRESHOLD, trimmed)
        if mapped is None:
            self._library.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def _bytes(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def _free_a_block(library: Any) -> None:
    library.free(library.malloc(_BLOCK_BYTES))


def _free_a_block_in_threads(library: Any, count: int) -> None:
    go = threading.Event()

    def one() -> None:
        go.wait()
        _free_a_block(library)

    threads = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=one, name="memguard-tops", daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        # No thread more may be started here: those there are reach as many arenas.
        _log.debug("only %d of %d threads could be started", len(threads), count)
    finally:
        go.set()
        for thread in threads:
            thread.join()


tops = Tops()
"""Those of this process."""
