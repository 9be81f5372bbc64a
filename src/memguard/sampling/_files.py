"""
Small kernel files, read again and again on a descriptor that stays open.

Opening costs six times what reading does. A kept descriptor has enemies, and none of them is told of:

* fork: ``/proc/self`` of an inherited descriptor is still the parent's;
* a daemoniser that closes every descriptor, after which the number may belong to somebody else's file;
* a cgroup that is removed (ENODEV), a FUSE server that is started again (ENOTCONN);
* a process that has no descriptor left (EMFILE): the last one is never kept.

So a descriptor must still name the file that was opened, by device and inode, before it is used. Where many files are
read at once, one look at one of them stands for all (:meth:`KeptFile.vouch`): whoever closes descriptors wholesale
closes that one, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from memguard.forking import forget_in_child
from memguard.logs import log

_MOST_BYTES = 16_384
_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)  # Windows has none: its descriptors are not inherited


class _Descriptor:
    """An open file: its number, which file that was, and as of which doubt it was looked at."""

    __slots__ = ("doubt", "identity", "number")

    def __init__(self, number: int, identity: tuple[int, int]) -> None:
        self.number = number
        self.identity = identity
        self.doubt = _doubt[0]


# Replaced when a descriptor of ours turns out to be closed by somebody else: all that were looked at before are in
# doubt then.
_doubt: list[object] = [object()]
# Which descriptor of ours a number was opened for last: of two that name the same file, only the later one is ours.
_owners: dict[int, _Descriptor] = {}


class KeptFile:
    """
    A kernel file at *path*, read whole from its start each time.

    Args:
        path: Where it is.
        most_bytes: As large as it can be; a small buffer halves the cost of a file of one number.
        vouched: Whether somebody calls :meth:`vouch` of another file before this one is read.

    Safe in threads without a lock: the descriptor lives in one dict slot, whose operations are atomic.
    """

    __slots__ = ("__weakref__", "_most_bytes", "_slot", "_vouched", "path")

    def __init__(self, path: Path, *, most_bytes: int = _MOST_BYTES, vouched: bool = False) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._vouched = vouched
        self._slot: dict[str, _Descriptor] = {}
        forget_in_child(self)

    def read(self) -> bytes:
        """
        Return what the file holds now; where the kept descriptor has gone bad, opened anew.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: There may be one, but it cannot be read.
        """
        kept = self._slot.get("fd")
        if kept is not None and ((self._vouched and kept.doubt is _doubt[0]) or _is_still(kept)):
            try:
                return os.pread(kept.number, self._most_bytes, 0)
            except OSError:
                pass
        if kept is not None and self._slot.get("fd") is kept:  # another thread may have opened it anew
            self.close()
        try:
            return self._read_anew()
        except NotADirectoryError as error:  # a part of the path has become a file: what it named is gone
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path)) from error

    def vouch(self) -> None:
        """Find out whether descriptors were closed by somebody else; if so, all of ours are looked at before use."""
        kept = self._slot.get("fd")
        if kept is not None and not _is_still(kept):
            _doubt[0] = object()
            self.close()

    def close(self) -> None:
        """Close the descriptor if it is still ours. A later read opens it again."""
        kept = self._slot.pop("fd", None)
        if kept is None:
            return
        ours = _is_still(kept)
        if _owners.get(kept.number) is kept:
            _owners.pop(kept.number, None)
        if ours:  # a number that is somebody else's by now is forgotten, never closed
            os.close(kept.number)

    def __del__(self) -> None:
        # At interpreter exit the module may be half gone; the kernel closes what is left.
        with contextlib.suppress(Exception):
            self.close()

    def _read_anew(self) -> bytes:
        number = os.open(self.path, os.O_RDONLY | _CLOEXEC)
        try:
            text = os.pread(number, self._most_bytes, 0)
            if _is_spare(number):
                self._keep(number)
        finally:
            # Whether it is kept is asked of the slot: an exception may come right after it was put there.
            kept = self._slot.get("fd")
            if kept is None or kept.number != number:
                os.close(number)
        return text

    def _keep(self, number: int) -> None:
        status = os.fstat(number)
        mine = _Descriptor(number, (status.st_dev, status.st_ino))
        _owners[number] = mine
        if self._slot.setdefault("fd", mine) is not mine:  # another thread was first
            _owners.pop(number, None)

    def _forget_threads(self) -> None:
        self.close()


class MaybeFile:
    """A file that may not exist: it is then empty, and not looked for again before :meth:`look_again`."""

    __slots__ = ("_absent", "_file", "_seen")

    def __init__(self, path: Path, *, most_bytes: int = _MOST_BYTES, vouched: bool = False) -> None:
        self._file = KeptFile(path, most_bytes=most_bytes, vouched=vouched)
        self._absent = False
        self._seen = False

    def read(self) -> bytes:
        """
        Return what it holds; nothing where it does not exist.

        Raises:
            FileNotFoundError: It is there no more. From the next time on it is absent.
            OSError: It cannot be read.
        """
        if self._absent:
            return b""
        try:
            text = self._file.read()
        except FileNotFoundError:
            self._absent, seen, self._seen = True, self._seen, False
            if seen:
                raise
            return b""
        self._seen = True
        return text

    def look_again(self) -> None:
        """Look for it the next time, if it was absent."""
        self._absent = False

    def close(self) -> None:
        """Close the kept descriptor."""
        self._file.close()


def _is_still(kept: _Descriptor) -> bool:
    if _owners.get(kept.number) is not kept:
        return False
    try:
        status = os.fstat(kept.number)
    except OSError:
        return False
    if (status.st_dev, status.st_ino) != kept.identity:
        return False
    kept.doubt = _doubt[0]
    return True


def _is_spare(number: int) -> bool:
    """Tell whether this process can open another file beside *number*: the last descriptor is not for keeping."""
    try:
        os.close(os.dup(number))
    except OSError:
        return False
    return True


def read_once(path: Path) -> bytes:
    """
    Return all that the file at *path* holds.

    Raises:
        OSError: As :meth:`KeptFile.read`.
    """
    with path.open("rb", buffering=0) as file:
        return file.readall()


def write_once(path: Path, text: bytes) -> None:
    """
    Write *text* to the kernel file at *path*.

    Raises:
        OSError: As the kernel says.
    """
    number = os.open(path, os.O_WRONLY | _CLOEXEC)
    try:
        os.write(number, text)
    finally:
        os.close(number)


class Troubles:
    """What could not be read, and why: logged once for each kind of trouble, not with each reading."""

    def __init__(self) -> None:
        self._known: set[int | None] = set()

    def note(self, error: OSError, instead: str) -> None:
        """Say that *error* came, and what is gone by *instead*; nothing if one of its kind came before."""
        if error.errno in self._known:
            return
        self._known.add(error.errno)
        # As text: a record that is kept shall not keep the frames of the error, and all that they hold.
        log.warning("memguard: a measurement failed (%s); %s", str(error), instead)
