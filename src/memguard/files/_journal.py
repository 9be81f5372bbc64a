"""
The journal of an upload: what it is to be, and which chunks have arrived. Layout and meaning alone; no I/O.

A record is sixteen bytes inside one sector, written after its chunk: so it is there or not, whenever the process is
killed. The page cache outlives a process, but not the machine: the header says in which boot it was written, and after
another one each chunk has to be read and compared with its record before it counts.

See:
    ``/proc/sys/kernel/random/boot_id`` in ``man 5 proc``.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

from memguard.files._checksums import combine_crc32

HEADER_BYTES = 4096
RECORD_BYTES = 16
MOST_CHUNK_BYTES = 2**32 - 1
_MAGIC = b"memguard"
_VERSION = 1
_FIXED = struct.Struct("<8sHBxQQQQ36sHH")
_RECORD = struct.Struct("<B3xII")
_WHOLE_RECORD = struct.Struct("<B3xIII")
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
        texts = [self.checksum.encode(), self.dest.encode("utf-8", "surrogateescape")]
        fixed = _FIXED.pack(
            _MAGIC,
            _VERSION,
            self.phase,
            self.total_bytes,
            self.chunk_bytes,
            self.device,
            self.inode,
            self.boot.encode("ascii", "replace")[:36],
            *map(len, texts),
        )
        body = fixed + b"".join(texts)
        if len(body) + _CRC.size > HEADER_BYTES:
            raise ValueError(f"{self.dest!r} is too long a name: the journal has room for about 3,900 bytes")
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes) -> Header | None:
        """Return the header that *data* holds; None where they hold none that is whole."""
        if len(data) < _FIXED.size:
            return None
        magic, version, phase, total, chunk, device, inode, boot, *lengths = _FIXED.unpack_from(data)
        end = _FIXED.size + sum(lengths)
        if magic != _MAGIC or version != _VERSION or len(data) < end + _CRC.size:
            return None
        if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
            return None
        at = _FIXED.size + lengths[0]
        return cls(
            total,
            chunk,
            data[_FIXED.size : at].decode(),
            boot.rstrip(b"\0").decode(),
            Phase(phase),
            data[at:end].decode("utf-8", "surrogateescape"),
            device,
            inode,
        )


class Record(NamedTuple):
    """A chunk that arrived: its bytes and their CRC-32."""

    length: int
    crc32: int


def record_offset(index: int) -> int:
    """Return where in the journal the record of chunk *index* is."""
    return HEADER_BYTES + index * RECORD_BYTES


def pack_record(index: int, record: Record) -> bytes:
    """Return the bytes of a record. Its own checksum knows its place: one that strayed is none."""
    body = _RECORD.pack(1, record.length, record.crc32)
    return body + _CRC.pack(zlib.crc32(body, index & 0xFFFFFFFF))


def unpack_record(data: bytes, index: int, header: Header) -> Record | None:
    """Return the record of chunk *index* that *data* holds; None where the chunk has not arrived."""
    return unpack_records(data[:RECORD_BYTES], header, index).get(index)


def unpack_records(data: bytes, header: Header, first: int = 0) -> dict[int, Record]:
    """Return the chunks that arrived, by index, in order; *data* are the records from that of chunk *first* on."""
    found = {}
    usual, last = header.chunk_bytes, header.chunks - 1
    view = memoryview(data)[: len(data) // RECORD_BYTES * RECORD_BYTES]
    for index, (state, length, crc, own) in enumerate(_WHOLE_RECORD.iter_unpack(view), first):
        if state == 1 and length == (usual if index < last else header.length(index)):
            at = (index - first) * RECORD_BYTES
            if own == zlib.crc32(view[at : at + _RECORD.size], index & 0xFFFFFFFF):
                found[index] = Record(length, crc)
    return found


def crc32_of_chunks(records: dict[int, Record]) -> int:
    """Return the CRC-32 of the whole, combined from those of its chunks, given in their order."""
    whole = 0
    for record in records.values():
        whole = combine_crc32(whole, record.crc32, record.length)
    return whole
