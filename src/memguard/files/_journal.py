"""
The journal of an upload: what it is to be, and which chunks have arrived. Layout and meaning alone; no I/O.

It is a header, a mark of one byte for each chunk, and a record of sixteen for each. A record lies inside one sector and
is written after its chunk: so it is there or not, whenever the process is killed. Its mark comes last; so what is
missing can be told from the marks alone, and a mark that is wrong costs a chunk that is sent once more.

The page cache outlives a process, but not the machine: the header says in which boot it was written, and after another
one each chunk has to be read and compared with its record before it counts.

See:
    ``/proc/sys/kernel/random/boot_id`` in ``man 5 proc``.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

HEADER_BYTES = 4096
RECORD_BYTES = 16
MOST_CHUNK_BYTES = 2**32 - 1
MOST_BYTES = 2**63 - 1
"""No file is larger."""
MAGIC = b"memguard"
_VERSION = 2
_FIXED = struct.Struct("<8sHBxQQQQ36sQHHH")
_RECORD = struct.Struct("<B3xII")
_WHOLE_RECORD = struct.Struct("<B3xIII")
_BODY_AND_CRC = struct.Struct("<12sI")
_CRC = struct.Struct("<I")


class Phase(enum.IntEnum):
    """How far an upload is."""

    RECEIVING = 0
    PUBLISHING = 1
    PUBLISHED = 2


@dataclass(frozen=True, slots=True)
class Header:
    """
    What an upload is to be.

    Attributes:
        total_bytes: The whole.
        chunk_bytes: Each chunk but the last.
        checksum: What the whole must have; empty for none.
        content_id: What its sender calls these contents; empty where nobody says.
        nonce: Tells this upload from all others, also from earlier ones of its name.
        boot: In which boot of the machine the records were written; empty where nobody says.
        phase: How far it is.
        dest: Where it is, or is being, published; empty before.
        device: Of the data's file.
        inode: Of the data's file: by these two a published file is known again. Of an object that was sent ahead: its
            token.
    """

    total_bytes: int
    chunk_bytes: int
    checksum: str = ""
    boot: str = ""
    phase: Phase = Phase.RECEIVING
    dest: str = ""
    device: int = 0
    inode: int = 0
    content_id: str = ""
    nonce: int = 0

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.total_bytes // self.chunk_bytes)

    def length(self, index: int) -> int:
        """Return the bytes of chunk *index*."""
        return min(self.chunk_bytes, self.total_bytes - index * self.chunk_bytes)

    def to(self, phase: Phase, dest: str = "") -> Header:
        """Return the header of the next *phase*."""
        return replace(self, phase=phase, dest=dest or self.dest)

    def pack(self) -> bytes:
        """
        Return its bytes.

        Raises:
            ValueError: The name of where it goes is too long.
        """
        texts = [text.encode("utf-8", "surrogateescape") for text in (self.checksum, self.content_id, self.dest)]
        fixed = _FIXED.pack(
            MAGIC,
            _VERSION,
            self.phase,
            self.total_bytes,
            self.chunk_bytes,
            self.device,
            self.inode,
            self.boot.encode("ascii", "replace")[:36],
            self.nonce,
            *map(len, texts),
        )
        body = fixed + b"".join(texts)
        if len(body) + _CRC.size > HEADER_BYTES:
            raise ValueError(f"{self.dest!r} is too long a name: the journal has room for about 3,900 bytes")
        return body + _CRC.pack(zlib.crc32(body))

    def same_work(self, other: Header) -> bool:
        """Tell whether chunks of *other* are chunks of this."""
        ours = self.total_bytes, self.chunk_bytes, self.checksum, self.content_id
        return ours == (other.total_bytes, other.chunk_bytes, other.checksum, other.content_id)

    @property
    def tells_contents(self) -> bool:
        """Whether it says what the contents are, so that the same again is known."""
        return bool(self.checksum or self.content_id)

    @classmethod
    def unpack(cls, data: bytes) -> Header | None:
        """Return the header that *data* holds; None where they hold none that is whole."""
        if len(data) < _FIXED.size:
            return None
        magic, version, phase, total, chunk, device, inode, boot, nonce, *lengths = _FIXED.unpack_from(data)
        end = _FIXED.size + sum(lengths)
        if magic != MAGIC or version != _VERSION or len(data) < end + _CRC.size:
            return None
        if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
            return None
        texts, at = [], _FIXED.size
        for length in lengths:
            texts.append(data[at : at + length].decode("utf-8", "surrogateescape"))
            at += length
        checksum, content_id, dest = texts
        boot = boot.rstrip(b"\0").decode()
        return cls(total, chunk, checksum, boot, Phase(phase), dest, device, inode, content_id, nonce)


class Record(NamedTuple):
    """A chunk that arrived: its bytes and their CRC-32."""

    length: int
    crc32: int


def mark_offset(index: int) -> int:
    """Return where in the journal the mark of chunk *index* is."""
    return HEADER_BYTES + index


def record_offset(index: int, header: Header) -> int:
    """Return where in the journal the record of chunk *index* is."""
    marks_bytes = -(-header.chunks // RECORD_BYTES) * RECORD_BYTES
    return HEADER_BYTES + marks_bytes + index * RECORD_BYTES


def journal_bytes(header: Header) -> int:
    """Return how large the journal is."""
    return record_offset(header.chunks, header)


_MARKS = bytes(range(1, 256))
_MISSING = b"\0" + b"\1" * 255


def mark_of(index: int) -> bytes:
    """Return the mark of chunk *index* once it has arrived: another for each that is near, so that none strays."""
    return _MARKS[index % len(_MARKS) :][:1]


class Arrived:
    """
    Which chunks have arrived, as the marks say.

    Args:
        marks: As they are in the journal.
        header: What the upload is to be.
    """

    def __init__(self, marks: bytes, header: Header) -> None:
        self._header = header
        count = header.chunks
        expected = (_MARKS * (count // len(_MARKS) + 1))[:count]
        # The difference of two long numbers: each byte of it is 0 where the mark is right.
        differs = int.from_bytes(marks.ljust(count, b"\0")[:count], "little") ^ int.from_bytes(expected, "little")
        self._missing = differs.to_bytes(count, "little").translate(_MISSING)

    @property
    def complete(self) -> bool:
        """Whether all have."""
        return b"\1" not in self._missing

    @property
    def nbytes(self) -> int:
        """How many bytes have."""
        header, count = self._header, self._missing.count(0)
        if not count:
            return 0
        last = header.chunks - 1
        short = 0 if self._missing[last] else header.chunk_bytes - header.length(last)
        return count * header.chunk_bytes - short

    def missing(self) -> Iterator[int]:
        """Yield the indexes of those that have not."""
        at = self._missing.find(1)
        while at >= 0:
            yield at
            at = self._missing.find(1, at + 1)


def pack_record(index: int, record: Record) -> bytes:
    """Return the bytes of a record. Its own checksum knows its place: one that strayed is none."""
    body = _RECORD.pack(1, record.length, record.crc32)
    return body + _CRC.pack(zlib.crc32(body, index & 0xFFFFFFFF))


def unpack_record(data: bytes, index: int, header: Header) -> Record | None:
    """Return the record of chunk *index* that *data* holds; None where the chunk has not arrived."""
    return next(unpack_records(data[:RECORD_BYTES], header, index), (index, None))[1]


def unpack_crcs(data: bytes, header: Header, first: int) -> list[int]:
    """
    Return the CRC-32 of each chunk from *first* on, up to the first that has not arrived.

    What :func:`unpack_records` tells, three times as fast: a whole may have very many chunks.
    """
    found = []
    usual, last, crc32 = header.chunk_bytes, header.chunks - 1, zlib.crc32
    for index, (body, own) in enumerate(_BODY_AND_CRC.iter_unpack(data), first):
        if own != crc32(body, index & 0xFFFFFFFF):
            break
        state, length, crc = _RECORD.unpack(body)
        if state != 1 or length != (usual if index < last else header.length(index)):
            break
        found.append(crc)
    return found


def unpack_records(data: bytes, header: Header, first: int = 0) -> Iterator[tuple[int, Record | None]]:
    """Yield index and record of each chunk from *first* on; *data* are their records as they are in the journal."""
    usual, last = header.chunk_bytes, header.chunks - 1
    view = memoryview(data)[: len(data) // RECORD_BYTES * RECORD_BYTES]
    for index, (state, length, crc, own) in enumerate(_WHOLE_RECORD.iter_unpack(view), first):
        record = None
        if state == 1 and length == (usual if index < last else header.length(index)):
            at = (index - first) * RECORD_BYTES
            if own == zlib.crc32(view[at : at + _RECORD.size], index & 0xFFFFFFFF):
                record = Record(length, crc)
        yield index, record
