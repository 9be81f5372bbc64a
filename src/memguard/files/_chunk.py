"""
One chunk on its way into the data's file: written in place at its offset, its CRC counted on the way, its record last.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, TypeAlias

from memguard.errors import AssemblyError, ChecksumMismatchError, UploadConflictError
from memguard.files._caching import DROP_BYTES, PageDropper
from memguard.files._checksums import Checksum, Hasher, crc32_text
from memguard.files._copying import BUFFER_BYTES, read_into, write_all
from memguard.files._journal import Header, Record

Data: TypeAlias = bytes | bytearray | memoryview | BinaryIO | Iterable[bytes]
"""What a chunk may come as."""


def pieces_of(data: Data) -> Iterator[memoryview]:
    """
    Yield *data* in pieces; a file's through one reused buffer.

    Raises:
        TypeError: It is neither bytes, nor a binary file, nor an iterable of bytes.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        yield memoryview(data).cast("B")
        return
    readinto = getattr(data, "readinto", None)
    if readinto is not None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while got := readinto(buffer):
            yield buffer[:got]
        return
    for piece in data:
        yield piece_of(piece)


def piece_of(piece: Any) -> memoryview:
    """Return *piece* as bytes to look at."""
    try:
        return memoryview(piece).cast("B")
    except TypeError:
        raise TypeError(
            f"a chunk is bytes, a binary file, or an iterable of bytes; got {type(piece).__name__}"
        ) from None


def idling(pieces: Iterator[memoryview], idle: Callable[[], AbstractContextManager[None]]) -> Iterator[memoryview]:
    """Yield *pieces*; *idle* is entered while the sender of the next one is waited for."""
    while True:
        with idle():
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


class ChunkWriter:
    """
    Takes one chunk piece by piece: :meth:`feed`, then :meth:`end`. Whoever makes it holds the chunk's lock.

    A chunk that is there already is compared, not written.

    Args:
        header: What the upload is to be.
        index: Which chunk.
        data: The descriptor of the data's file; None once that is published, when a record is all there is.
        record: Of the chunk, if it has arrived before.
        checksum: What its sender said.
        dropper: Keeps the page cache low; None where that does not matter.
    """

    def __init__(
        self,
        header: Header,
        index: int,
        data: int | None,
        record: Record | None,
        checksum: Checksum | None,
        *,
        dropper: PageDropper | None = None,
    ) -> None:
        self._header = header
        self._index = index
        self._data = data
        self._record = record
        self._checksum = checksum
        self._dropper = dropper
        # A CRC is counted in any case.
        self._hasher: Hasher | None = None if checksum is None or checksum.is_crc32 else checksum.hasher()
        self._length = header.length(index)
        self._offset = index * header.chunk_bytes
        self._done = 0
        self._crc = 0
        self._differs = False
        self._buffer: memoryview | None = None

    def feed(self, piece: memoryview) -> None:
        """
        Take the next piece.

        Raises:
            ChecksumMismatchError: The chunk is longer than it may be.
            OSError: It cannot be written.
        """
        if self._done + len(piece) > self._length:
            raise ChecksumMismatchError(f"{self._length} bytes", f"{self._done + len(piece)} or more", self._index)
        self._crc = zlib.crc32(piece, self._crc)
        if self._hasher is not None:
            self._hasher.update(piece)
        if self._record is None:
            assert self._data is not None
            self._write(self._data, piece, self._offset + self._done)
        elif self._data is not None:
            self._compare(piece)
        self._done += len(piece)

    def _write(self, data: int, piece: memoryview, at: int) -> None:
        if self._dropper is None:
            write_all(data, piece, at)
            return
        for start in range(0, len(piece), DROP_BYTES):
            part = piece[start : start + DROP_BYTES]
            write_all(data, part, at + start)
            self._dropper.wrote(at + start + len(part), len(part))

    def _compare(self, piece: memoryview) -> None:
        assert self._data is not None
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER_BYTES))
        for start in range(0, len(piece), BUFFER_BYTES):
            part = piece[start : start + BUFFER_BYTES]
            got = read_into(self._data, self._buffer[: len(part)], self._offset + self._done + start)
            self._differs |= self._buffer[:got] != part

    def end(self) -> Record | None:
        """
        Return the record to write; None where the chunk was there, and was the same.

        Raises:
            ChecksumMismatchError: It is shorter than it has to be, or not what its sender said.
            UploadConflictError: Other bytes are there already.
        """
        if self._done != self._length:
            raise ChecksumMismatchError(f"{self._length} bytes", f"{self._done} bytes", self._index)
        if self._checksum is not None:
            text = crc32_text(self._crc) if self._hasher is None else self._checksum.text(self._hasher)
            if not self._checksum.matches(text):
                raise ChecksumMismatchError(str(self._checksum), text, self._index)
        if self._record is None:
            return Record(self._length, self._crc)
        if self._differs or self._record.crc32 != self._crc:
            raise UploadConflictError(
                f"chunk {self._index} arrived before with other bytes; abort the upload to begin anew"
            )
        return None


def check_size(data: int, header: Header) -> None:
    """
    Raise if somebody cut the data's file.

    Raises:
        AssemblyError: It is shorter than it was made.
    """
    size = os.fstat(data).st_size
    if size < header.total_bytes:
        raise AssemblyError(
            f"somebody cut the upload's file to {size} of {header.total_bytes} bytes; abort the upload and begin anew"
        )
