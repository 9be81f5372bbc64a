"""
The journal of an upload as a file, open: whoever has it open has the upload in use.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from memguard.errors import AssemblyError, UploadNotFoundError
from memguard.files._checksums import combine_all
from memguard.files._copying import read_at, write_all
from memguard.files._handles import Handle
from memguard.files._journal import (
    HEADER_BYTES,
    MAGIC,
    RECORD_BYTES,
    Arrived,
    Header,
    Record,
    mark_of,
    mark_offset,
    pack_record,
    record_offset,
    unpack_crcs,
    unpack_record,
    unpack_records,
)
from memguard.files._locks import locked, mark_in_use, no_longer_in_use
from memguard.files._publishing import naming

JOURNAL = "journal"
_SLICE = 4096
"""Records that are read at a time."""


class Journal:
    """
    What is in a journal, through an open descriptor of it.

    Args:
        path: Its name.
        number: The descriptor.
        durable: Whether what is written is to survive the machine.
    """

    def __init__(self, path: Path, number: int, *, durable: bool) -> None:
        self._path = path
        self._number = number
        self._durable = durable

    def header(self) -> Header:
        """
        Return what the upload is to be, and how far it is.

        Raises:
            AssemblyError: The journal is damaged.
            UploadNotFoundError: The upload was removed.
        """
        with naming(self._path):
            data = read_at(self._number, HEADER_BYTES, 0)
            removed = os.fstat(self._number).st_nlink == 0
        if removed:
            raise not_found(self._path)
        header = Header.unpack(data)
        if header is None:
            raise _damaged(self._path, data)
        return header

    def write_header(self, header: Header) -> None:
        """Write how far it is."""
        with naming(self._path):
            write_all(self._number, header.pack().ljust(HEADER_BYTES, b"\0"), 0)
            if self._durable:
                os.fsync(self._number)

    # ----- what has arrived

    def arrived(self, header: Header) -> Arrived:
        """Return which chunks have arrived."""
        with naming(self._path):
            return Arrived(read_at(self._number, header.chunks, HEADER_BYTES), header)

    def record(self, index: int, header: Header) -> Record | None:
        """Return the record of a chunk that has arrived, else None."""
        with naming(self._path):
            data = read_at(self._number, RECORD_BYTES, record_offset(index, header))
        return unpack_record(data, index, header)

    def records(self, header: Header, first: int = 0) -> Iterator[tuple[int, Record | None]]:
        """Yield index and record of each chunk from *first* on; None for those that have not arrived."""
        for start in range(first, header.chunks, _SLICE):
            count = min(_SLICE, header.chunks - start)
            with naming(self._path):
                data = read_at(self._number, count * RECORD_BYTES, record_offset(start, header))
            yield from unpack_records(data.ljust(count * RECORD_BYTES, b"\0"), header, start)

    def crc32(self, header: Header, first: int = 0, whole: int = 0) -> tuple[int, int]:
        """
        Combine the CRC-32 of what has arrived without a gap from those of its chunks.

        Args:
            header: What the upload is to be.
            first: Up to this chunk it is known.
            whole: To be this.

        Returns:
            How many chunks it is of, and the CRC.
        """
        last = header.chunks - 1
        for start in range(first, last, _SLICE):
            count = min(_SLICE, last - start)
            with naming(self._path):
                data = read_at(self._number, count * RECORD_BYTES, record_offset(start, header))
            crcs = unpack_crcs(data, header, start)
            whole = combine_all(whole, crcs, header.chunk_bytes)
            if len(crcs) < count:
                return start + len(crcs), whole
        record = self.record(last, header) if first <= last else None
        if record is None:
            return max(first, last), whole
        return header.chunks, combine_all(whole, [record.crc32], record.length)

    def packed_records(self, header: Header) -> bytes:
        """Return all records as they are in the file."""
        with naming(self._path):
            return read_at(self._number, header.chunks * RECORD_BYTES, record_offset(0, header))

    def note(self, index: int, record: Record, header: Header, *, durable: bool = False) -> None:
        """Note that a chunk has arrived: its record, in one piece, then its mark."""
        with naming(self._path):
            write_all(self._number, pack_record(index, record), record_offset(index, header))
            write_all(self._number, mark_of(index), mark_offset(index))
            if durable:
                os.fsync(self._number)

    def is_marked(self, index: int) -> bool:
        """Tell whether the mark of a chunk is there."""
        with naming(self._path):
            return read_at(self._number, 1, mark_offset(index)) == mark_of(index)

    def forget(self, index: int, header: Header) -> None:
        """Note that a chunk has to arrive again: its mark goes first."""
        with naming(self._path):
            write_all(self._number, b"\0", mark_offset(index))
            write_all(self._number, b"\0" * RECORD_BYTES, record_offset(index, header))

    def check_there(self) -> None:
        """
        Raise if this is the journal no more.

        Raises:
            UploadNotFoundError: So it is: the upload was removed.
        """
        if not self.is_at(self._path):
            raise not_found(self._path)

    def is_at(self, path: Path) -> bool:
        """Tell whether it is the file at *path*."""
        try:
            there = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        with naming(self._path):
            return os.path.samestat(there, os.fstat(self._number))


class JournalFile:
    """
    The journal in *folder*.

    Args:
        folder: Of the upload.
        durable: Whether what is written is to survive the machine.

    Raises:
        OSError: It cannot be read.
        UploadNotFoundError: There is none, or it is being removed.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._path = folder / JOURNAL
        self._durable = durable
        try:
            self._handle = Handle(self._path, no_longer_in_use)
        except (FileNotFoundError, NotADirectoryError):
            raise not_found(self._path) from None
        with self._handle.borrowed() as number:
            in_use = mark_in_use(number)
        if not in_use:
            self.close()
            raise not_found(self._path)

    def close(self) -> None:
        """Let go of it; a second call does nothing."""
        self._handle.close()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Journal]:
        """
        Have it open.

        Raises:
            ValueError: It is closed.
        """
        if self._handle.closed:
            raise ValueError(f"upload {self._path.parent.name!r} is closed; open it again")
        with self._handle.borrowed() as number:
            yield Journal(self._path, number, durable=self._durable)

    @contextlib.contextmanager
    def locked(self, start: int, *, wait: bool = True) -> Iterator[Journal]:
        """
        Hold one byte of it, and have it open, both until the end even if this is closed meanwhile.

        Raises:
            BusyError: Somebody else has it, and *wait* is False.
            UploadNotFoundError: It was removed, and perhaps begun anew.
            ValueError: It is closed.
        """
        with self.borrowed() as ours, contextlib.ExitStack() as stack:
            try:
                with naming(self._path):
                    stack.enter_context(locked(self._path, start, wait=wait))
            except (FileNotFoundError, NotADirectoryError):
                raise not_found(self._path) from None
            ours.check_there()
            yield ours


def not_found(path: Path) -> UploadNotFoundError:
    """Return the error that there is no upload with the journal *path*."""
    return UploadNotFoundError(f"there is no upload {path.parent.name!r}: never begun, aborted, or removed as stale")


def _damaged(path: Path, data: bytes) -> AssemblyError:
    """Return the error that the journal *path*, which begins with *data*, is none that can be read."""
    name = path.parent.name
    if not data.startswith(MAGIC):
        return UploadNotFoundError(f"there is no upload {name!r}: what is there has no journal of memguard's")
    return AssemblyError(
        f"the journal of upload {name!r} is damaged, or of another version of memguard; abort({name!r}) of the store "
        "removes it"
    )
