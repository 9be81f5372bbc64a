"""
Parts to one file, at the speed of ``cat``, verified on the way.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from memguard.errors import AssemblyError, ChecksumMismatchError, InsufficientDiskError
from memguard.files._caching import DROP_BYTES, PageDropper, drop_pages, in_container
from memguard.files._checksums import Checksum, Hasher, parse_checksum
from memguard.files._copying import BUFFER_BYTES, WINDOW_BYTES, Copier, read_into, shares_extents
from memguard.files._publishing import Unpublished, naming
from memguard.signals import contained
from memguard.values import Progress, gate_of

StrPath: TypeAlias = str | os.PathLike[str]
_AHEAD = 2
"""Windows that are copied before they are verified, at most; one where they count against a container's limit."""


@dataclass(frozen=True, slots=True)
class AssembledFile:
    """
    A file that was published.

    Attributes:
        path: Where it is.
        size_bytes: How large it is.
        checksum: ``"sha256:HEX"``, say; None where none was asked for.
    """

    path: Path
    size_bytes: int
    checksum: str | None


def assemble(
    parts: Iterable[StrPath],
    dest: StrPath,
    *,
    checksum: str | None = None,
    part_checksums: Iterable[str | None] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    on_progress: Callable[[Progress], object] | None = None,
) -> AssembledFile:
    """
    Put *parts*, one after the other, into one file that appears whole under *dest* or not at all.

    Takes a buffer's worth of memory whatever the sizes. Where the file system shares extents (XFS, btrfs) and the sizes
    of the parts are multiples of 4096, nothing is copied. What is verified is what was written.

    Args:
        parts: Paths, walked once; each is opened when its turn comes.
        dest: The name of the whole.
        checksum: What the whole must have, ``"sha256:HEX"`` or ``"crc32:HEX"``; or only what to compute, ``"sha256"``.
        part_checksums: What each part must have; None for one that needs none.
        overwrite: Whether the file may take the place of another, which stays whole until then.
        durable: Whether to wait until the disk has it: then it survives a crash of the machine.
        on_progress: Called after every 8 MiB or less, in bytes; the total is known if *parts* is a sequence.
            What it raises is logged.

    Raises:
        AssemblyError: *dest* is one of the parts, or a part shrank meanwhile.
        ChecksumMismatchError: A part or the whole is not what was expected.
        FileExistsError: There is a file, and *overwrite* is False.
        InsufficientDiskError: The disk has no room for what is still to come.
        OSError: A part cannot be read, or the file not be written.
        ValueError: A checksum cannot be meant, or there are more or fewer than parts.
    """
    target = Path(dest)
    whole = None if checksum is None else parse_checksum(checksum)
    with Unpublished(target, overwrite=overwrite, durable=durable) as file:
        total = sum(map(_size, parts)) if isinstance(parts, Sequence) else None
        run = _Run(file.number, target, whole, _Reporter(on_progress, total))
        with run.verifying():
            for index, (part, expected) in enumerate(_paired(parts, part_checksums)):
                run.add(index, part, expected)
        found = run.finish()
        file.publish()
    return AssembledFile(target, run.size_bytes, found)


def _paired(
    parts: Iterable[StrPath], checksums: Iterable[str | None] | None
) -> Iterator[tuple[StrPath, Checksum | None]]:
    if checksums is None:
        yield from ((part, None) for part in parts)
        return
    for part, text in zip(parts, checksums, strict=True):
        yield part, None if text is None else parse_checksum(text)


def check_room(target: Path, nbytes: int) -> None:
    """
    Raise if the disk of *target* has no room for *nbytes*.

    Raises:
        InsufficientDiskError: So it is.
    """
    if not hasattr(os, "statvfs"):
        return
    disk = os.statvfs(target.parent)
    free = disk.f_bavail * disk.f_frsize
    if nbytes > free:
        raise InsufficientDiskError(nbytes, free, str(target.parent))


class _Reporter:
    """
    Tells of progress.

    Attributes:
        total: Bytes in all; None where nobody knows.
    """

    def __init__(self, tell: Callable[[Progress], object] | None, total: int | None) -> None:
        self._tell = tell
        self.total = total
        self._began = time.monotonic()

    def report(self, done: int, *, last: bool = False) -> None:
        if self._tell is None:
            return
        seconds = time.monotonic() - self._began
        rate = done / seconds if seconds else 0.0
        total = done if last else self.total
        percent = 100.0 if last else None if not total else min(99.9, 100.0 * done / total)
        eta = None if total is None or not rate else max(0, total - done) / rate
        progress = Progress(done, total, percent, rate, eta, WINDOW_BYTES, gate_of(None).level)
        contained(self._tell, progress, what="on_progress")


class _Window:
    """A piece that was written, and what it is part of."""

    __slots__ = ("end", "expected", "index", "nbytes", "offset")

    def __init__(self, offset: int, nbytes: int, index: int, expected: Checksum | None, *, end: bool) -> None:
        self.offset = offset
        self.nbytes = nbytes
        self.index = index
        self.expected = expected
        self.end = end


class _Verifier(threading.Thread):
    """
    Reads what was written, behind the copy, in a thread of its own: hashing and copying both let the GIL go.

    Attributes:
        failed: What went wrong; the copy stops at it.
    """

    def __init__(self, number: int, target: Path, whole: Checksum | None, dropper: PageDropper | None) -> None:
        super().__init__(name="memguard-verify", daemon=True)
        self._number = number
        self._target = target
        self._dropper = dropper
        self._windows: queue.Queue[_Window | None] = queue.Queue(maxsize=_AHEAD if dropper is None else 1)
        self._whole = None if whole is None else (whole, whole.hasher())
        self._part: Hasher | None = None
        self.failed: BaseException | None = None

    def put(self, window: _Window | None) -> None:
        """Hand over what was written; None ends."""
        self._windows.put(window)
        if self.failed is not None:
            raise self.failed

    def run(self) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while (window := self._windows.get()) is not None:
            if self.failed is None:
                try:
                    with naming(self._target):
                        self._verify(window, buffer)
                except BaseException as error:
                    self.failed = error

    def _verify(self, window: _Window, buffer: memoryview) -> None:
        if window.expected is not None and self._part is None:
            self._part = window.expected.hasher()
        hashers = [hasher for hasher in (self._part, self._whole and self._whole[1]) if hasher]
        at, end = window.offset, window.offset + window.nbytes
        while hashers and at < end:
            got = read_into(self._number, buffer[: min(BUFFER_BYTES, end - at)], at)
            if not got:
                raise AssemblyError(f"the file lost what was written at {at}")
            for hasher in hashers:
                hasher.update(buffer[:got])
            at += got
        if self._dropper is not None:
            self._dropper.wrote(end, window.nbytes, until=end)
        if window.end and window.expected is not None and self._part is not None:
            text, self._part = window.expected.text(self._part), None
            if not window.expected.matches(text):
                raise ChecksumMismatchError(str(window.expected), text, window.index)

    def result(self) -> str | None:
        """Return the checksum of the whole, once the thread has ended."""
        if self.failed is not None:
            raise self.failed
        if self._whole is None:
            return None
        whole, hasher = self._whole
        text = whole.text(hasher)
        if not whole.matches(text):
            raise ChecksumMismatchError(str(whole), text)
        return text


class _Run:
    """One assembly under way."""

    def __init__(self, number: int, target: Path, whole: Checksum | None, reporter: _Reporter) -> None:
        self._number = number
        self._target = target
        self._whole = whole
        self._reporter = reporter
        self._copier = Copier(number)
        self._verifier: _Verifier | None = None
        self._dropper = PageDropper(number) if in_container() else None
        self._window_bytes = WINDOW_BYTES if self._dropper is None else DROP_BYTES
        self._identity = _identity(target) if target.exists() else None
        self.size_bytes = 0

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """Have what is written verified, and wait for the end of it."""
        if self._whole is not None:
            self._begin()
        try:
            yield
        finally:
            if self._verifier is not None:
                self._verifier._windows.put(None)
                self._verifier.join()

    def _begin(self) -> _Verifier:
        if self._verifier is None:
            self._verifier = _Verifier(self._number, self._target, self._whole, self._dropper)
            self._verifier.start()
        return self._verifier

    def add(self, index: int, part: StrPath, expected: Checksum | None) -> None:
        """Copy one part to the end."""
        source = os.open(part, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        try:
            with naming(part):
                status = os.fstat(source)
            if stat.S_ISDIR(status.st_mode):
                raise AssemblyError(f"part {index}, {os.fspath(part)!r}, is a directory")
            if (status.st_dev, status.st_ino) == self._identity:
                raise AssemblyError(f"part {index}, {os.fspath(part)!r}, is what the whole is to be written to")
            # What is no regular file says 0, as do files that the kernel makes as they are read: read to their end.
            size = status.st_size if stat.S_ISREG(status.st_mode) and status.st_size else None
            self._check_room(source, size or 0)
            self._copy(source, part, size, index, expected)
        finally:
            os.close(source)

    def _check_room(self, source: int, nbytes: int) -> None:
        """Look whether all fits, or each part where nobody knows the total; what is shared always does."""
        total = self._reporter.total
        if total is not None and self.size_bytes:
            return
        try:
            check_room(self._target, nbytes if total is None else total)
        except InsufficientDiskError:
            if not shares_extents(source, self._number, self.size_bytes):
                raise

    def _copy(self, source: int, part: StrPath, size: int | None, index: int, expected: Checksum | None) -> None:
        done = 0
        while size is None or done < size:
            with naming(part, self._target):
                if size is None:
                    moved = self._copier.drain(source, self.size_bytes)
                else:
                    moved = self._copier.copy(source, min(self._window_bytes, size - done), done, self.size_bytes)
            if not moved:
                break
            self._wrote(moved, index, expected, end=False)
            if self._dropper is not None:
                drop_pages(source, 0, done + moved)
            done += moved
        if size is not None and done < size:
            raise AssemblyError(f"part {index} shrank while it was copied: {done} of {size} bytes were there")
        if expected is not None:
            self._begin().put(_Window(self.size_bytes, 0, index, expected, end=True))

    def _wrote(self, nbytes: int, index: int, expected: Checksum | None, *, end: bool) -> None:
        start, self.size_bytes = self.size_bytes, self.size_bytes + nbytes
        if self._verifier is not None or expected is not None:
            # It drops pages, too, once it has seen them.
            self._begin().put(_Window(start, nbytes, index, expected, end=end))
        elif self._dropper is not None:
            self._dropper.wrote(self.size_bytes, nbytes)
        self._reporter.report(self.size_bytes)

    def finish(self) -> str | None:
        """Return the checksum of the whole, verified."""
        found = None if self._verifier is None else self._verifier.result()
        self._reporter.report(self.size_bytes, last=True)
        return found


def _size(part: StrPath) -> int:
    return os.stat(part).st_size  # noqa: PTH116 - a Path costs more than the call


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
