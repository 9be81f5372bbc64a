"""
The journal of an upload as a file, open: whoever has it open has the upload in use.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from memguard.errors import UploadNotFoundError
from memguard.files._copying import read_at, write_all
from memguard.files._journal import (
    HEADER_BYTES,
    RECORD_BYTES,
    Header,
    Record,
    pack_record,
    record_offset,
    unpack_record,
    unpack_records,
)
from memguard.files._locks import OPEN, locked, mark_in_use
from memguard.files._publishing import naming

JOURNAL = "journal"


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
        self._number = -1
        try:
            self._number = os.open(self._path, OPEN)
        except (FileNotFoundError, NotADirectoryError):
            raise self.not_found() from None
        if not mark_in_use(self._number):
            self.close()
            raise self.not_found()

    def not_found(self) -> UploadNotFoundError:
        """Return the error that there is no such upload."""
        name = self._path.parent.name
        return UploadNotFoundError(f"there is no upload {name!r}: never begun, aborted, or removed as stale")

    def close(self) -> None:
        """Let go of it; a second call does nothing."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1

    def _opened(self) -> int:
        if self._number < 0:
            raise ValueError(f"upload {self._path.parent.name!r} is closed; open it again")
        return self._number

    def header(self) -> Header:
        """
        Return what the upload is to be, and how far it is.

        Raises:
            UploadNotFoundError: It was removed.
            ValueError: It is closed.
        """
        number = self._opened()
        with naming(self._path):
            header = Header.unpack(read_at(number, HEADER_BYTES, 0))
            removed = os.fstat(number).st_nlink == 0
        if header is None or removed:
            raise self.not_found()
        return header

    def write_header(self, header: Header) -> None:
        """Write how far it is."""
        number = self._opened()
        with naming(self._path):
            write_all(number, header.pack().ljust(HEADER_BYTES, b"\0"), 0)
            if self._durable:
                os.fsync(number)

    def record(self, index: int, header: Header) -> Record | None:
        """Return the record of a chunk that has arrived, else None."""
        with naming(self._path):
            data = read_at(self._opened(), RECORD_BYTES, record_offset(index))
        return unpack_record(data, index, header)

    def packed_records(self, header: Header) -> bytes:
        """Return all records as they are in the file."""
        with naming(self._path):
            return read_at(self._opened(), header.chunks * RECORD_BYTES, HEADER_BYTES)

    def records(self, header: Header) -> dict[int, Record]:
        """Return the records of the chunks that have arrived, by index."""
        return unpack_records(self.packed_records(header), header)

    def write_record(self, index: int, record: Record | None, *, durable: bool = False) -> None:
        """Write the record of a chunk, in one piece; None if it has to arrive again."""
        number = self._opened()
        with naming(self._path):
            write_all(number, pack_record(index, record) if record else b"\0" * RECORD_BYTES, record_offset(index))
            if durable:
                os.fsync(number)

    @contextlib.contextmanager
    def locked(self, start: int, *, wait: bool = True) -> Iterator[int]:
        """
        Hold one byte of it; yield a descriptor of its own, which stays open if this is closed meanwhile.

        Raises:
            BusyError: Somebody else has it, and *wait* is False.
            UploadNotFoundError: It was removed.
        """
        self._opened()
        with contextlib.ExitStack() as stack:
            try:
                with naming(self._path):
                    number = stack.enter_context(locked(self._path, start, wait=wait))
            except FileNotFoundError:
                raise self.not_found() from None
            yield number

    def check_there(self, number: int) -> None:
        """
        Raise if the file at the descriptor *number* is the journal no more.

        Raises:
            UploadNotFoundError: So it is: the upload was removed.
        """
        try:
            there = self._path.stat()
        except FileNotFoundError:
            raise self.not_found() from None
        if not os.path.samestat(there, os.fstat(number)):
            raise self.not_found()
