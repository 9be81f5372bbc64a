"""
A checksum of the whole that cannot be combined from those of chunks: it runs along the chunks that have arrived without
a gap, so that at the end little is left to read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from memguard.errors import AssemblyError
from memguard.files._checksums import Checksum
from memguard.files._copying import BUFFER_BYTES, read_into
from memguard.files._journal import Header, Record


class Prefix:
    """
    The running checksum of one upload, in this process: it cannot be stored, and begins anew in the next.

    Args:
        checksum: What the whole must have.
    """

    def __init__(self, checksum: Checksum) -> None:
        self.checksum = checksum
        self._hasher = checksum.hasher()
        self._chunk = 0
        self._busy = threading.Lock()

    def advance(self, data: int, header: Header, record: Callable[[int], Record | None]) -> None:
        """Go on as far as chunks have arrived; nothing if another thread is at it."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            while self._chunk < header.chunks and record(self._chunk) is not None:
                self._read(data, header)
        finally:
            self._busy.release()

    def finish(self, data: int, header: Header) -> str:
        """Return the checksum of the whole, all of which has arrived."""
        with self._busy:
            while self._chunk < header.chunks:
                self._read(data, header)
            return self.checksum.text(self._hasher)

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
