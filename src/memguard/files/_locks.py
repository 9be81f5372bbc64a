"""
Locks of an upload's files, between processes and between threads. The kernel frees them however a process ends.

They belong to the open file, and a forked child has the same files open: so each lock is given back by name, too, and
a child that lives on keeps nobody out.

Linux has locks on single bytes that belong to the open file. Elsewhere an upload in use is marked by a lock on its
whole file, or, on Windows, by the refusal to remove open files; and chunks are locked between the threads of one
process only.

See:
    ``man 2 fcntl``, open file description locks (Linux 3.15); ``man 2 flock``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_LIVE = 1 << 40
"""The byte of which whoever has the file in use holds a shared lock; it need not exist."""
_FLOCK = "hhqqi"


def _module() -> Any:
    try:
        return importlib.import_module("fcntl")
    except ImportError:  # Windows has none
        return None


_fcntl = _module()
_has_byte_locks = sys.platform == "linux" and hasattr(_fcntl, "F_OFD_SETLK")
"""Elsewhere the numbers may be there, but mean another layout."""


class BusyError(Exception):
    """Somebody else has the lock."""


def mark_in_use(number: int) -> bool:
    """Mark an open file as in use until it is closed; tell whether it is: else somebody has claimed it."""
    return _lock_live(number, shared=True)


def claim(number: int) -> bool:
    """Claim an open file that nobody has in use until it is closed; tell whether nobody has."""
    return _lock_live(number, shared=False)


def no_longer_in_use(number: int) -> None:
    """Take the mark or claim of an open file back, in whatever processes it is still open."""
    if _has_byte_locks:
        _unlock_byte(number, _LIVE)
    elif _fcntl is not None:
        with contextlib.suppress(OSError):
            _fcntl.flock(number, _fcntl.LOCK_UN)


def _lock_live(number: int, *, shared: bool) -> bool:
    if _has_byte_locks:
        return _lock_byte(number, _LIVE, shared=shared, wait=False)
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(number, (_fcntl.LOCK_SH if shared else _fcntl.LOCK_EX) | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(path: Path, start: int, *, wait: bool = True) -> Iterator[int]:
    """
    Hold one byte of the file at *path*, through a descriptor of its own: so other threads count, too. Yield that.

    Args:
        path: The file.
        start: Which byte; it need not exist.
        wait: Wait for it, in this thread.

    Raises:
        BusyError: Somebody else has it, and *wait* is False.
        OSError: The file cannot be opened, or its file system has no locks.
    """
    number, process = os.open(path, OPEN), os.getpid()
    try:
        if _has_byte_locks:
            if not _lock_byte(number, start, shared=False, wait=wait):
                raise BusyError
            try:
                yield number
            finally:
                if os.getpid() == process:
                    _unlock_byte(number, start)
        else:
            status = os.fstat(number)
            with _table.held((status.st_dev, status.st_ino, start), wait=wait):
                yield number
    finally:
        os.close(number)


def _lock_byte(number: int, start: int, *, shared: bool, wait: bool) -> bool:
    kind = _fcntl.F_RDLCK if shared else _fcntl.F_WRLCK
    command = _fcntl.F_OFD_SETLKW if wait else _fcntl.F_OFD_SETLK
    try:
        _fcntl.fcntl(number, command, struct.pack(_FLOCK, kind, 0, start, 1, 0))
    except OSError as error:
        if not wait and error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _unlock_byte(number: int, start: int) -> None:
    with contextlib.suppress(OSError):  # closing the file, which follows, does the same, but for children
        _fcntl.fcntl(number, _fcntl.F_OFD_SETLK, struct.pack(_FLOCK, _fcntl.F_UNLCK, 0, start, 1, 0))


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """
    Hold the folder against others who give or take names in it, as far as its file system has locks for folders.

    For moments only: it is waited for. Where there are none (Windows, some network file systems), nobody is kept out.
    """
    if _fcntl is None:
        yield
        return
    number, process = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)), os.getpid()
    try:
        with contextlib.suppress(OSError):
            _fcntl.flock(number, _fcntl.LOCK_EX)
        try:
            yield
        finally:
            if os.getpid() == process:
                with contextlib.suppress(OSError):
                    _fcntl.flock(number, _fcntl.LOCK_UN)
    finally:
        os.close(number)


class _Table:
    """Locks by key, each only there while somebody has it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[object, tuple[threading.Lock, list[None]]] = {}

    @contextlib.contextmanager
    def held(self, key: object, *, wait: bool) -> Iterator[None]:
        with self._lock:
            lock, users = self._locks.setdefault(key, (threading.Lock(), []))
            users.append(None)
        try:
            if not lock.acquire(blocking=wait):
                raise BusyError
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._lock:
                users.pop()
                if not users:
                    del self._locks[key]


_table = _Table()


def _after_fork() -> None:
    global _table  # noqa: PLW0603 - who holds its locks is not in the child
    _table = _Table()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
