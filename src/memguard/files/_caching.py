"""
Keeps the page cache low where it counts against a container's limit.

See:
    ``man 2 posix_fadvise``, POSIX_FADV_DONTNEED: drops whole, clean, unmapped pages, and starts to write dirty ones.
    ``man 2 readv``, RWF_NOWAIT: reads only what is in the page cache, so it tells whether that is so.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque

from memguard.forking import forget_in_child
from memguard.sampling import memory_limit

DROP_BYTES = 1024**2
"""After so much written, pages are dropped: more stays in the cache, less takes longer."""


@functools.cache
def in_container() -> bool:
    """Tell whether a cgroup limits this process: then pages of files count against it until they are dropped."""
    return memory_limit().source.startswith("cgroup")


def drop_pages(number: int, offset: int, nbytes: int) -> None:
    """Let the kernel drop the pages of this part of a file, or write them so that it can the next time."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(number, offset, nbytes, os.POSIX_FADV_DONTNEED)


def _is_cached(number: int, offset: int) -> bool:
    if not (hasattr(os, "RWF_NOWAIT") and hasattr(os, "preadv")):
        return False
    try:
        return bool(os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT))
    except OSError:  # it is not, or the file system does not tell
        return False


class PageDropper:
    """
    Keeps a few MiB, at most, of a file that is being written in the page cache.

    Each window is written to the disk while the next is filled, and dropped with that. Where the disk does not keep up,
    it is waited for.

    Args:
        number: The file's descriptor, open for reading and writing.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._forget_threads()
        forget_in_child(self)

    def _forget_threads(self) -> None:
        self._lock = threading.Lock()
        self._filled = 0
        self._ends: deque[int] = deque()

    def wrote(self, end: int, nbytes: int, *, until: int = 0) -> None:
        """
        Note that *nbytes* were written, and drop pages now and then; other threads wait meanwhile.

        Args:
            end: Where what was written ends.
            nbytes: How much it was.
            until: What begins here is kept, it is still needed; 0 to drop all.

        Raises:
            OSError: The disk could not take it.
        """
        with self._lock:
            self._filled += nbytes
            if self._filled < DROP_BYTES:
                return
            self._filled = 0
            drop_pages(self._number, 0, until)
            self._ends.append(end)
            if len(self._ends) > 1 and _is_cached(self._number, self._ends.popleft() - 1):
                os.fdatasync(self._number)
                drop_pages(self._number, 0, until)
