"""
A multipart upload to an object store: what is sent is read from a file as it is sent, each part with its CRC-32.

See:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html: sizes and checksums of the parts that are there,
    a thousand at a time.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from memguard.errors import ChecksumMismatchError
from memguard.files._caching import drop_pages
from memguard.files._checksums import crc32_text
from memguard.files._copying import BUFFER_BYTES, read_into


class Part(NamedTuple):
    """Where a part is in the whole; numbers begin at 1."""

    number: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.start + self.length


class SentPart(NamedTuple):
    """What the store has of a part."""

    length: int
    crc32: int
    etag: str


def parts_of(nbytes: int, size: int) -> Iterator[Part]:
    """Yield the parts of a whole, *size* each but the last."""
    for number, start in enumerate(range(0, nbytes, size), 1):
        yield Part(number, start, min(size, nbytes - start))


class Multipart:
    """
    A multipart upload that was begun.

    Args:
        client: Of boto3.
        names: Bucket and key.
        upload_id: What the store calls it.
        sent: The parts that are there, and right; those that are sent here are added.

    Attributes:
        sent: As given.
        ended: Whether it was completed or aborted here.
    """

    def __init__(
        self, client: Any, names: Mapping[str, str], upload_id: str, sent: dict[int, SentPart] | None = None
    ) -> None:
        self._client = client
        self._names = {**names, "UploadId": upload_id}
        self.upload_id = upload_id
        self.sent = {} if sent is None else sent
        self.ended = False

    def send(self, data: int, part: Part, *, drops: bool, expected: int | None = None) -> None:
        """
        Send a part.

        Args:
            data: The descriptor of the whole, open for reading.
            part: Which one.
            drops: Whether to keep the page cache low.
            expected: Its CRC-32; None if nobody knows.

        Raises:
            ChecksumMismatchError: What was read, or what arrived, is something else.
        """
        body = _Range(data, part.start, part.length)
        crc = body.crc32()
        if expected is not None and crc != expected:
            raise ChecksumMismatchError(crc32_text(expected), crc32_text(crc), part.number - 1)
        text = _text_of(crc)
        answer = self._client.upload_part(**self._names, PartNumber=part.number, Body=body, ChecksumCRC32=text)
        if answer.get("ChecksumCRC32", text) != text:
            raise ChecksumMismatchError(text, answer["ChecksumCRC32"], part.number - 1)
        self.sent[part.number] = SentPart(part.length, crc, answer["ETag"])
        if drops:
            drop_pages(data, 0, 0)

    def listed(self) -> dict[int, SentPart]:
        """Return the parts that the store says it has, by number; those without a CRC-32 it might as well not have."""
        found = {}
        for page in self._client.get_paginator("list_parts").paginate(**self._names):
            for part in page.get("Parts", ()):
                crc = _crc32_of(part.get("ChecksumCRC32"))
                if crc is not None:
                    found[part["PartNumber"]] = SentPart(part["Size"], crc, part["ETag"])
        return found

    def complete(self, **condition: str) -> None:
        """Make the parts that were sent one object."""
        parts = [
            {"PartNumber": number, "ETag": part.etag, "ChecksumCRC32": _text_of(part.crc32)}
            for number, part in sorted(self.sent.items())
        ]
        self._client.complete_multipart_upload(**self._names, MultipartUpload={"Parts": parts}, **condition)
        self.ended = True

    def abort(self) -> None:
        """Have the store forget the parts, if it can be reached."""
        self.ended = True
        with contextlib.suppress(Exception):
            self._client.abort_multipart_upload(**self._names)


def _text_of(crc32: int) -> str:
    """Return a CRC-32 as the protocol has it."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def _crc32_of(text: str | None) -> int | None:
    try:
        data = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(data, "big") if len(data) == 4 else None


class _Range(io.RawIOBase):
    """A range of a file, as a file: what is sent is read as it is sent."""

    def __init__(self, number: int, start: int, nbytes: int) -> None:
        super().__init__()
        self._number = number
        self._start = start
        self._nbytes = nbytes
        self._at = 0

    def __len__(self) -> int:
        return self._nbytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._nbytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._nbytes - self._at)]
        got = read_into(self._number, view, self._start + self._at) if view else 0
        self._at += got
        return got

    def crc32(self) -> int:
        """Return the CRC-32 of all of it, and stand at the start again."""
        buffer, crc = memoryview(bytearray(BUFFER_BYTES)), 0
        self.seek(0)
        while got := self.readinto(buffer):
            crc = zlib.crc32(buffer[:got], crc)
        self.seek(0)
        return crc


def crc32_of_range(data: int, part: Part) -> int:
    """Return the CRC-32 of a part, read from the file."""
    return _Range(data, part.start, part.length).crc32()
