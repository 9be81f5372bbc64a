"""
Checksums of wholes that run along the chunks that have arrived without a gap, so that at the end little is left to do.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol

from memguard.errors import AssemblyError, MissingChunksError
from memguard.files._checksums import Checksum, combine_crc32, crc32_text, parse_checksum
from memguard.files._copying import BUFFER_BYTES, read_into
from memguard.files._journal import Header, Record
from memguard.files._journal_file import Journal
from memguard.forking import forget_in_child

_MOST_KEPT = 256


class RunningChecksum(Protocol):
    """The checksum of one upload, in this process: it cannot be stored, and begins anew in the next."""

    def advance(self, data: int, journal: Journal, header: Header, index: int, record: Record) -> None:
        """Go on, now that chunk *index* has arrived; nothing if another thread is at it."""
        ...

    def finish(self, data: int, journal: Journal, header: Header) -> str:
        """
        Return the checksum of the whole, all of which has arrived.

        Raises:
            AssemblyError: Somebody cut the data.
            MissingChunksError: A record is damaged: that chunk has to be sent again.
        """
        ...


class _Combined:
    """The CRC-32 of the whole, combined from those of its chunks."""

    def __init__(self) -> None:
        self._begin()
        forget_in_child(self)

    def _begin(self) -> None:
        self._busy = threading.Lock()
        self._so_far = 0, 0  # chunks, and their CRC

    def advance(self, data: int, journal: Journal, header: Header, index: int, record: Record) -> None:  # noqa: ARG002
        if self._so_far[0] == index and self._busy.acquire(blocking=False):
            try:
                chunks, crc = self._so_far
                if chunks == index:
                    self._so_far = chunks + 1, combine_crc32(crc, record.crc32, record.length)
            finally:
                self._busy.release()

    def finish(self, data: int, journal: Journal, header: Header) -> str:  # noqa: ARG002
        with self._busy:
            self._so_far = chunks, crc = journal.crc32(header, *self._so_far)
        if chunks < header.chunks:
            journal.forget(chunks, header)  # its mark is there, but its record is damaged
            raise MissingChunksError((chunks,))
        return crc32_text(crc)

    def _forget_threads(self) -> None:
        self._begin()


class _Read:
    """Another checksum: the bytes themselves have to be read."""

    def __init__(self, checksum: Checksum) -> None:
        self._checksum = checksum
        self._begin()
        forget_in_child(self)

    def _begin(self) -> None:
        self._busy = threading.Lock()
        self._hasher = self._checksum.hasher()
        self._chunk = 0

    def advance(self, data: int, journal: Journal, header: Header, index: int, record: Record) -> None:  # noqa: ARG002
        if not self._busy.acquire(blocking=False):
            return
        try:
            while self._chunk < header.chunks and journal.is_marked(self._chunk):
                self._read(data, header)
        finally:
            self._busy.release()

    def finish(self, data: int, journal: Journal, header: Header) -> str:  # noqa: ARG002
        with self._busy:
            while self._chunk < header.chunks:
                self._read(data, header)
            return self._checksum.text(self._hasher)

    def _read(self, data: int, header: Header) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        at = self._chunk * header.chunk_bytes
        end = at + header.length(self._chunk)
        hasher = self._hasher.copy()  # type: ignore[attr-defined]
        while at < end:
            got = read_into(data, buffer[: min(BUFFER_BYTES, end - at)], at)
            if not got:
                raise AssemblyError(f"the upload's file ends at {at} bytes; somebody cut it")
            hasher.update(buffer[:got])
            at += got
        self._hasher = hasher
        self._chunk += 1

    def _forget_threads(self) -> None:
        self._begin()


class RunningChecksums:
    """Those of the uploads of a store, each known by the upload's nonce: a successor of its name has another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: OrderedDict[int, RunningChecksum] = OrderedDict()
        forget_in_child(self)

    def of(self, header: Header) -> RunningChecksum:
        """Return that of an upload."""
        with self._lock:
            found = self._known.get(header.nonce)
            if found is None:
                found = self._known[header.nonce] = _made(header)
            self._known.move_to_end(header.nonce)
            while len(self._known) > _MOST_KEPT:
                self._known.popitem(last=False)
            return found

    def forget(self, header: Header) -> None:
        """Begin anew for an upload, or be done with it."""
        with self._lock:
            self._known.pop(header.nonce, None)

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()


def _made(header: Header) -> RunningChecksum:
    if not header.checksum or header.checksum.startswith("crc32:"):
        return _Combined()
    return _Read(parse_checksum(header.checksum))
