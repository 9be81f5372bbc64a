"""
Small kernel files, read again and again on a descriptor that stays open.

Opening costs six times what reading does. A kept descriptor has enemies, and none of them is told of:

* fork: ``/proc/self`` of an inherited descriptor is still the parent's;
* a daemoniser that closes every descriptor, after which the number may belong to somebody else's file.

So before each use the descriptor must still name the file that was opened, by device and inode.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import NamedTuple

_MOST_BYTES = 16_384


class _Descriptor(NamedTuple):
    number: int
    identity: tuple[int, int]


class KeptFile:
    """
    A kernel file at *path*, read whole from its start each time.

    Args:
        path: Where it is.
        most_bytes: As large as it can be; a small buffer halves the cost of a file of one number.

    Safe in threads without a lock: the descriptor lives in one dict slot, whose operations are atomic.
    """

    __slots__ = ("__weakref__", "_most_bytes", "_slot", "path")

    def __init__(self, path: Path, *, most_bytes: int = _MOST_BYTES) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._slot: dict[str, _Descriptor] = {}
        _kept.add(self)

    def read(self) -> bytes:
        """
        Return what the file holds now.

        Raises:
            OSError: It does not exist, cannot be read, or its cgroup is gone.
        """
        kept = self._slot.get("fd")
        if kept is not None:
            if _is_still(kept):
                return os.pread(kept.number, self._most_bytes, 0)
            # The number is somebody else's by now: forget it, never close it.
            self._slot.pop("fd", None)
        return os.pread(self._open().number, self._most_bytes, 0)

    def close(self) -> None:
        """Close the descriptor if it is still ours. A later read opens it again."""
        kept = self._slot.pop("fd", None)
        if kept is not None and _is_still(kept):
            os.close(kept.number)

    def __del__(self) -> None:
        # At interpreter exit the module may be half gone; the kernel closes what is left.
        with contextlib.suppress(Exception):
            self.close()

    def _open(self) -> _Descriptor:
        number = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(number)
        mine = _Descriptor(number, (status.st_dev, status.st_ino))
        kept = self._slot.setdefault("fd", mine)
        if kept is not mine:  # another thread was first
            os.close(number)
        return kept


def _is_still(kept: _Descriptor) -> bool:
    try:
        status = os.fstat(kept.number)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == kept.identity


def _forget_after_fork() -> None:
    for kept in list(_kept):
        kept.close()


_kept: weakref.WeakSet[KeptFile] = weakref.WeakSet()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
