"""
Keeps the page cache low where it counts against a container's limit.

See:
    ``man 2 posix_fadvise``, POSIX_FADV_DONTNEED: drops whole, clean, unmapped pages, and starts to write dirty ones; so
    each window is written while the next is copied, and dropped with the one after.
"""

from __future__ import annotations

import functools
import os

from memguard.sampling import memory_limit


@functools.cache
def in_container() -> bool:
    """Tell whether a cgroup limits this process: then pages of files count against it until they are dropped."""
    return memory_limit().source.startswith("cgroup")


def drop_pages(number: int, offset: int, nbytes: int) -> None:
    """Let the kernel drop the pages of this part of a file, or write them so that it can the next time."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(number, offset, nbytes, os.POSIX_FADV_DONTNEED)
