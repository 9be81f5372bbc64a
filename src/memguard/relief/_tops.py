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

import time
from _thread import start_new_thread
from collections.abc import Callable
from typing import Any

from memguard.logs import log
from memguard.relief._allocator import (
    _M_MMAP_THRESHOLD,
    _M_TRIM_THRESHOLD,
    _count_arenas,
    _told,
)
from memguard.sampling import glibc, held_free_bytes
from memguard.turns import Bell, Claim, Turn

_WORTH_BYTES = 8 * 1024**2
_BLOCK_BYTES = 100_000
"""Freed, it makes glibc look at the top: more than FASTBIN_CONSOLIDATION_THRESHOLD (64 KiB), less than is mapped."""
_LOW_THRESHOLD_BYTES = 1024**2
_MMAP_THRESHOLD_BYTES = 32 * 1024**2
_TRIM_THRESHOLD_BYTES = 2 * _MMAP_THRESHOLD_BYTES
_GLIBC_TRIM_THRESHOLD_BYTES = 128 * 1024
_MOST_THREADS = 64
_LONGEST_WAIT_SECONDS = 1.0
"""For threads that do next to nothing. They may never run: at the end of the interpreter, say."""


class Tops:
    """Gives back the tops of arenas: all of them, or that of the calling thread's. Never waits for one another."""

    def __init__(self) -> None:
        self._turn = Turn()
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
        if not self._lowered(library, lambda: _free_a_block_in_threads(library, arenas)):
            return False
        # Arenas were made instead of met. Once, that may have been the last ones; twice, the limit is far, and each
        # living thread sits on its own.
        self._made_arenas += _count_arenas(library) > arenas
        return True

    def give_back_own(self) -> bool:
        """Give back what the calling thread's arena keeps at its top; tell whether that was tried."""
        library = self._worth()
        return library is not None and self._lowered(library, lambda: _free_a_block(library))

    def _worth(self) -> Any:
        library = glibc()
        return library if library is not None and (held_free_bytes() or 0) >= _WORTH_BYTES else None

    def _lowered(self, library: Any, act: Callable[[], None]) -> bool:
        """Do *act* while the trim threshold is low; nothing while somebody else is at that. Tell whether it was."""
        claim = Claim(self._turn)
        try:
            if not claim.take():
                return False
            trimmed, mapped = _thresholds()
            try:
                library.mallopt(_M_TRIM_THRESHOLD, _LOW_THRESHOLD_BYTES)
                act()
            finally:
                library.mallopt(_M_TRIM_THRESHOLD, trimmed)  # first and at once: a signal handler may raise after it
                if mapped is not None:
                    library.mallopt(_M_MMAP_THRESHOLD, mapped)
        finally:
            claim.give_back()
        self._say_once()
        return True

    def _say_once(self) -> None:
        if not self._said:
            self._said = True
            log.info(
                "glibc held much free memory: gave back the tops of its arenas, and fixed the thresholds that it "
                "adjusts itself (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)"
            )


def _thresholds() -> tuple[int, int | None]:
    """Return the thresholds to be set afterwards, to trim and to map: what the user told glibc, or large ones."""
    mapped = _told("MALLOC_MMAP_THRESHOLD_", "mmap_threshold")
    trimmed = _bytes(_told("MALLOC_TRIM_THRESHOLD_", "trim_threshold"))
    if trimmed is None:
        trimmed = _TRIM_THRESHOLD_BYTES if mapped is None else _GLIBC_TRIM_THRESHOLD_BYTES
    return trimmed, _MMAP_THRESHOLD_BYTES if mapped is None else None  # left as the user has set it


def _bytes(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def _free_a_block(library: Any) -> None:
    library.free(library.malloc(_BLOCK_BYTES))


class _Visit:
    """
    A thread that comes to an arena, waits until all have come, and frees a block there.

    Not a :class:`threading.Thread`: to start one takes a lock of that module, and waits until the new thread has taken
    it, too; a finalizer or signal handler that interrupted somebody who has it would wait for ever.
    """

    def __init__(self, library: Any, go: Bell) -> None:
        self._library = library
        self._go = go
        self.came = Bell()
        self.gone = Bell()
        start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self.came.ring()
            self._go.wait(_LONGEST_WAIT_SECONDS)
            _free_a_block(self._library)
        finally:
            self.gone.ring()


def _free_a_block_in_threads(library: Any, count: int) -> None:
    go, visits = Bell(), list[_Visit]()
    until = time.monotonic() + _LONGEST_WAIT_SECONDS
    try:
        for _ in range(count):
            visits.append(_Visit(library, go))
        for visit in visits:
            visit.came.wait(until - time.monotonic())
    except RuntimeError:
        # No thread more may be started here: those there are reach as many arenas.
        log.debug("only %d of %d threads could be started", len(visits), count)
    finally:
        go.ring()
    for visit in visits:
        visit.gone.wait(until - time.monotonic())


tops = Tops()
"""Those of this process."""
