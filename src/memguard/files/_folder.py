"""
The folder of an upload on the disk: how it comes to its name, and how it goes. Nothing is touched that is not ours.

Ours is a folder whose journal carries the journal's magic, and in it only the files that an upload has; what else is in
it stays, and so does the folder then. Links are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from memguard.errors import InsufficientDiskError
from memguard.files._copying import read_at, write_all
from memguard.files._data_file import DATA
from memguard.files._journal import HEADER_BYTES, MAGIC, Header, journal_bytes
from memguard.files._journal_file import JOURNAL
from memguard.files._locks import OPEN, claim, folder_locked, mark_in_use, no_longer_in_use
from memguard.files._publishing import RENAMES_OPEN_FILES, sync_folder, unhide
from memguard.files._sending import STATE, STATE_ASIDE

_ASIDE = re.compile(r"\..+\.[0-9a-f]{16}\.memguard-(new|gone)", re.ASCII)
_OURS = (STATE_ASIDE, STATE, DATA, JOURNAL)
"""The journal is the last to go: without it a folder is nobody's."""
_FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))


def begin(root: Path, name: str, header: Header, *, room: Room, durability: str) -> Path:
    """
    Make the folder of an upload, aside, and return it; :func:`give_its_name` is to follow.

    Raises:
        InsufficientDiskError: There is no room for it.
        OSError: It cannot be made.
    """
    aside = _aside(root, name, "new")
    aside.mkdir()
    try:
        with (aside / JOURNAL).open("w+b") as journal:
            mark_in_use(journal.fileno())  # else it may be taken for what a killed process left
            write_all(journal.fileno(), header.pack(), 0)
            journal.truncate(journal_bytes(header))
            with (aside / DATA).open("wb") as data:
                room.reserve(data.fileno(), header.total_bytes)
            if durability != "none":
                os.fsync(journal.fileno())
            no_longer_in_use(journal.fileno())
        if durability == "chunk":
            sync_folder(aside)
    except BaseException:
        clear(aside)
        raise
    return aside


class Room:
    """
    The room on the disk of a store.

    Args:
        root: The store's folder.
        reserves: Whether it is taken when an upload begins.
        min_free_bytes: So much stays free.
    """

    def __init__(self, root: Path, *, reserves: bool, min_free_bytes: int) -> None:
        self._root = root
        self._reserves = reserves
        self._min_free_bytes = min_free_bytes

    def check(self, nbytes: int) -> None:
        """
        Raise if there is no room for *nbytes*.

        Raises:
            InsufficientDiskError: So it is.
        """
        if hasattr(os, "statvfs"):
            disk = os.statvfs(self._root)
            free = max(0, disk.f_bavail * disk.f_frsize - self._min_free_bytes)
            if nbytes > free:
                raise InsufficientDiskError(nbytes, free, str(self._root))

    def reserve(self, number: int, nbytes: int) -> None:
        """
        Make an open file *nbytes* long, with blocks for all of it where the file system can.

        Raises:
            InsufficientDiskError: There is no room for it.
        """
        self.check(nbytes)
        try:
            if self._reserves and nbytes and hasattr(os, "posix_fallocate"):
                _allocate(number, nbytes)
            os.ftruncate(number, nbytes)
        except OSError as error:
            if error.errno in _FULL:
                raise InsufficientDiskError(nbytes, 0, str(self._root)) from error
            raise


def _allocate(number: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(number, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def give_its_name(aside: Path, folder: Path, *, durability: str) -> bool:
    """Give what :func:`begin` made its name, in one step; tell whether nobody was first. Held is the store's folder."""
    try:
        if os.path.lexists(folder):
            return False
        aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        clear(aside)
    if durability == "chunk":
        sync_folder(folder.parent)
    return True


def is_ours(folder: Path) -> bool:
    """Tell whether there is an upload's journal in *folder*, damaged or not."""
    with contextlib.suppress(OSError):
        number = os.open(folder / JOURNAL, OPEN)
        try:
            return read_at(number, len(MAGIC), 0) == MAGIC
        finally:
            os.close(number)
    return False


def remove(folder: Path, is_still: Callable[[], bool] = lambda: True) -> bool:
    """
    Remove an upload, its name first, in one step; tell whether it was there.

    Args:
        folder: The upload's.
        is_still: Tells whether it is still the one that is meant; asked while nobody else can begin one there.

    Raises:
        OSError: It cannot be removed; on Windows while somebody has it open.
    """
    gone = _aside(folder.parent, folder.name, "gone")
    try:
        with folder_locked(folder.parent):
            if not (is_ours(folder) and is_still()):
                return False
            folder.rename(gone)
    except FileNotFoundError:
        return False
    clear(gone)
    return True


def clear(folder: Path) -> None:
    """Remove what is ours of *folder*, and *folder* itself if that is all; nothing if it is a link, or cannot be."""
    if folder.is_symlink():
        return
    with contextlib.suppress(OSError):
        for name in _OURS:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


# ----- what is stale


def is_leftover(entry: os.DirEntry[str]) -> bool:
    """Tell whether *entry* is a folder that was on its way to or from its name, by its name."""
    return _ASIDE.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def changed_at(folder: Path) -> float:
    """Return when something last changed in *folder*, in seconds of the wall's clock."""
    times = []
    for path in (folder, folder / DATA, folder / JOURNAL):
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times, default=float("inf"))


def remove_leftover(folder: Path) -> None:
    """Remove a folder that :func:`is_leftover` if it is ours, and nobody is at it."""
    try:
        number = os.open(folder / JOURNAL, OPEN)
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # of one that had no file yet, or no more
        return
    try:
        head = read_at(number, len(MAGIC), 0)
        if head not in (MAGIC, b"") or not claim(number):
            return
        if RENAMES_OPEN_FILES:
            clear(folder)
    finally:
        os.close(number)
    if not RENAMES_OPEN_FILES:
        clear(folder)


def remove_unless_live(folder: Path) -> bool:
    """Remove an upload, unless it is none or somebody has it open; tell whether it was removed."""
    try:
        number = os.open(folder / JOURNAL, OPEN)
    except OSError:
        return False
    try:
        header = read_at(number, HEADER_BYTES, 0)
        if not header.startswith(MAGIC) or not claim(number):
            return False
        whole = Header.unpack(header)
        if whole is not None:
            unhide(folder.name, whole.nonce, whole.dest)
        if RENAMES_OPEN_FILES:
            return remove(folder)
    finally:
        os.close(number)
    try:
        return remove(folder)
    except PermissionError:  # somebody has it open
        return False


def _aside(root: Path, name: str, kind: str) -> Path:
    return root / f".{name}.{secrets.token_hex(8)}.memguard-{kind}"
