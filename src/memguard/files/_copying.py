"""
Copies bytes from one descriptor to another, the fastest way that these two know.

copy_file_range shares extents where the file system can (XFS, btrfs, both offsets at a multiple of 4096), and copies in
the kernel elsewhere; then sendfile; then one reused buffer.

See:
    ``man 2 copy_file_range``, ``man 2 sendfile``: both move at most 2,147,479,552 bytes a call, and may move 0 where
    they do not know the source (procfs, some FUSE) though there is more.
"""

from __future__ import annotations

import errno
import importlib
import os
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from memguard.errors import AssemblyError
from memguard.files._caching import DROP_BYTES, PageDropper, drop_pages

BUFFER_BYTES = 256 * 1024
"""More is slower: it leaves the processor's cache."""
WINDOW_BYTES = 8 * 1024**2
"""What is copied in one go, at most: so much is in the page cache, of what is to be dropped from it."""
_CANNOT = frozenset(
    getattr(errno, name)
    for name in ("EXDEV", "EINVAL", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EPERM", "EBADF", "ETXTBSY", "EOVERFLOW")
    if hasattr(errno, name)
)
"""Refusals of the way, not of the copy: the next way is tried."""

_FICLONERANGE = 0x4020940D
"""Its number on most processors; where it is another, sharing is not noticed."""
_BLOCK_BYTES = 4096

_seeking = threading.Lock()
"""A descriptor has one position: where no call takes an offset, threads must not move it in each other's midst."""

Way: TypeAlias = Callable[[int, int, int, int, int], int]
"""Takes source, target, bytes, offset there and here; returns how many bytes it moved."""


def _by_range(source: int, target: int, nbytes: int, source_at: int, target_at: int) -> int:
    return os.copy_file_range(source, target, nbytes, source_at, target_at)


def _by_sendfile(source: int, target: int, nbytes: int, source_at: int, target_at: int) -> int:
    os.lseek(target, target_at, os.SEEK_SET)
    return os.sendfile(target, source, source_at, nbytes)


def _ways() -> list[Way]:
    ways: list[Way] = []
    if hasattr(os, "copy_file_range"):
        ways.append(_by_range)
    if hasattr(os, "sendfile") and os.name == "posix" and os.uname().sysname == "Linux":  # elsewhere to sockets only
        ways.append(_by_sendfile)
    return ways


class Copier:
    """
    Copies to *target*, and remembers which ways have been refused.

    Args:
        target: A descriptor, open for writing, not for appending: that refuses both fast ways.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._ways = _ways()
        self._buffer: memoryview | None = None

    def drain(self, source: int, target_at: int) -> int:
        """Move what *source*, a pipe or a device, has to give next; return how many bytes, 0 at its end."""
        data = os.read(source, BUFFER_BYTES)
        write_all(self._target, data, target_at)
        return len(data)

    def copy(self, source: int, nbytes: int, source_at: int, target_at: int) -> int:
        """
        Move up to *nbytes*; return how many, 0 at the end of *source*.

        Raises:
            OSError: It can be read or written in no way.
        """
        while self._ways:
            try:
                moved = self._ways[0](source, self._target, nbytes, source_at, target_at)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
            else:
                if moved:
                    return moved
            # 0 may be the end, or a source that this way does not know: the buffer tells.
            if self._at_end(source, source_at):
                return 0
            self._ways.pop(0)
        return self._by_buffer(source, nbytes, source_at, target_at)

    @staticmethod
    def _at_end(source: int, source_at: int) -> bool:
        return not read_at(source, 1, source_at)

    def _by_buffer(self, source: int, nbytes: int, source_at: int, target_at: int) -> int:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER_BYTES))
        got = read_into(source, self._buffer[: min(nbytes, BUFFER_BYTES)], source_at)
        write_all(self._target, self._buffer[:got], target_at)
        return got


def shares_extents(source: int, target: int, target_at: int) -> bool:
    """
    Tell whether *target* can share all blocks of *source* from *target_at* on, by sharing the first.

    See:
        ``man 2 ioctl_ficlonerange``. copy_file_range shares, too, but does not tell.
    """
    if os.fstat(source).st_size % _BLOCK_BYTES:
        return False  # the rest, or what follows
    try:
        fcntl: Any = importlib.import_module("fcntl")  # Windows has none
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, 0, _BLOCK_BYTES, target_at))
    except (ImportError, OSError):
        return False
    return True


def copy_whole(source: int, target: int, nbytes: int, *, drops: bool) -> None:
    """
    Copy *nbytes* from the start of *source* to that of *target*.

    Args:
        source: A descriptor, open for reading.
        target: A descriptor, open for writing.
        nbytes: How many.
        drops: Whether to keep the page cache low.

    Raises:
        AssemblyError: *source* is shorter.
        OSError: It can be read or written in no way.
    """
    copier, done = Copier(target), 0
    dropper = PageDropper(target) if drops else None
    while done < nbytes:
        moved = copier.copy(source, min(DROP_BYTES if drops else WINDOW_BYTES, nbytes - done), done, done)
        if not moved:
            raise AssemblyError(f"the file to copy ended at {done} of {nbytes} bytes")
        done += moved
        if dropper is not None:
            drop_pages(source, 0, done)
            dropper.wrote(done, moved)


def read_into(source: int, buffer: memoryview, offset: int) -> int:
    """Read into *buffer* from *offset*; return how many bytes came."""
    if hasattr(os, "preadv"):
        return os.preadv(source, [buffer], offset)
    data = read_at(source, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def read_at(source: int, nbytes: int, offset: int) -> bytes:
    """Return up to *nbytes* from *offset*."""
    if hasattr(os, "pread"):
        return os.pread(source, nbytes, offset)
    with _seeking:
        os.lseek(source, offset, os.SEEK_SET)
        return os.read(source, nbytes)


def write_all(target: int, data: memoryview | bytes, offset: int) -> None:
    """
    Write all of *data* at *offset*.

    Raises:
        OSError: The disk is full, say.
    """
    left = memoryview(data)
    while left:
        if hasattr(os, "pwrite"):
            done = os.pwrite(target, left, offset)
        else:
            with _seeking:
                os.lseek(target, offset, os.SEEK_SET)
                done = os.write(target, left)
        left = left[done:]
        offset += done
