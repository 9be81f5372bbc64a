"""
An object store as the place where an upload is published: S3, and what speaks its protocol.

The object appears whole or not at all: in parts, read from the upload's file, completed once all are there and right.
Works with a client of boto3 that the caller made; so nothing of boto3 is loaded here.

See:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html: parts of 5 MiB to 5 GiB, at most 10,000.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import zlib
from dataclasses import dataclass
from typing import Any

from memguard.errors import AssemblyError, ChecksumMismatchError
from memguard.files._caching import drop_pages
from memguard.files._checksums import combine_crc32, crc32_text
from memguard.files._copying import BUFFER_BYTES, read_into
from memguard.units import ByteSize, parse_bytes

MIB = 1024**2
_LEAST_PART_BYTES = 5 * MIB
_MOST_PART_BYTES = 5 * 1024 * MIB
_MOST_PARTS = 10_000
_NOTE = "memguard-crc32"
"""Metadata of the object: by it one is known again that was completed right before a crash."""


@dataclass(frozen=True, slots=True)
class AssembledObject:
    """
    An object that was published.

    Attributes:
        path: Where it is: ``"s3://bucket/key"``.
        size_bytes: How large it is.
        checksum: ``"sha256:HEX"``, say.
    """

    path: str
    size_bytes: int
    checksum: str | None


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


class S3Target:
    """
    An object to publish an upload as: ``upload.finish(S3Target(client, "films", "film.mp4"))``.

    Each part goes with its CRC-32, which the store verifies; and together they have to be that of the whole. Whatever
    fails, the parts are aborted. If the process is killed meanwhile nobody can: let the bucket have a lifecycle rule,
    AbortIncompleteMultipartUpload.

    Args:
        client: ``boto3.client("s3")``; its retries are its own matter.
        bucket: Where.
        key: The name of the object.
        part_bytes: Of each part, 5 MiB to 5 GiB; more are taken where there would be more than 10,000 parts.

    Attributes:
        url: ``"s3://bucket/key"``.

    Raises:
        ValueError: A part may not be of this size, or a name is empty.
    """

    def __init__(self, client: Any, bucket: str, key: str, *, part_bytes: ByteSize = "8 MiB") -> None:
        if not bucket or not key:
            raise ValueError(f"a bucket and a key are needed, got {bucket!r} and {key!r}")
        self._part_bytes = parse_bytes(part_bytes)
        if not _LEAST_PART_BYTES <= self._part_bytes <= _MOST_PART_BYTES:
            raise ValueError(f"part_bytes is 5 MiB to 5 GiB, got {part_bytes!r}")
        self._client = client
        self._names = {"Bucket": bucket, "Key": key}
        self.url = f"s3://{bucket}/{key}"

    def part_size(self, nbytes: int) -> int:
        """Return the size of the parts, but for the last, of an object of *nbytes*."""
        least = -(-nbytes // _MOST_PARTS)
        return max(self._part_bytes, -(-least // MIB) * MIB)

    def holds(self, nbytes: int, crc32: int) -> bool:
        """Tell whether the object is there, and is this one."""
        found = self._head()
        if found is None:
            return False
        note = found.get("Metadata", {}).get(_NOTE)
        return bool(found["ContentLength"] == nbytes and note == crc32_text(crc32))

    def put(self, data: int, nbytes: int, crc32: int, *, overwrite: bool, drops: bool) -> None:
        """
        Publish the file at the descriptor *data*.

        Args:
            data: Open for reading.
            nbytes: Of the whole.
            crc32: Of the whole.
            overwrite: Whether it may take the place of another object.
            drops: Whether to keep the page cache low.

        Raises:
            AssemblyError: The store says that the object has another size.
            ChecksumMismatchError: What was read, or what arrived, is not the whole.
            FileExistsError: There is an object, and *overwrite* is False.
        """
        if not overwrite and self._head() is not None:
            raise self._exists()
        begun = self._client.create_multipart_upload(
            **self._names, ChecksumAlgorithm="CRC32", Metadata={_NOTE: crc32_text(crc32)}
        )
        names = {**self._names, "UploadId": begun["UploadId"]}
        try:
            parts = self._send(names, data, nbytes, crc32, drops=drops)
            self._complete(names, parts, overwrite=overwrite)
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.abort_multipart_upload(**names)
            raise
        found = self._head()
        if found is None or found["ContentLength"] != nbytes:
            size = None if found is None else found["ContentLength"]
            raise AssemblyError(f"{self.url} has {size} bytes, not the {nbytes} that were sent")

    def _send(self, names: dict[str, Any], data: int, nbytes: int, crc32: int, *, drops: bool) -> list[dict[str, Any]]:
        parts, size, whole = [], self.part_size(nbytes), 0
        for number, start in enumerate(range(0, max(1, nbytes), size), 1):
            body = _Range(data, start, min(size, nbytes - start))
            crc = body.crc32()
            whole = combine_crc32(whole, crc, len(body))
            text = base64.b64encode(crc.to_bytes(4, "big")).decode()
            sent = self._client.upload_part(**names, PartNumber=number, Body=body, ChecksumCRC32=text)
            if sent.get("ChecksumCRC32", text) != text:
                raise ChecksumMismatchError(text, sent["ChecksumCRC32"], number - 1)
            parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumCRC32": text})
            if drops:
                drop_pages(data, 0, 0)
        if whole != crc32:
            raise ChecksumMismatchError(crc32_text(crc32), crc32_text(whole))
        return parts

    def _complete(self, names: dict[str, Any], parts: list[dict[str, Any]], *, overwrite: bool) -> None:
        operation = self._client.meta.service_model.operation_model("CompleteMultipartUpload")
        only_new = not overwrite and "IfNoneMatch" in operation.input_shape.members
        condition = {"IfNoneMatch": "*"} if only_new else {}
        try:
            self._client.complete_multipart_upload(**names, MultipartUpload={"Parts": parts}, **condition)
        except self._client.exceptions.ClientError as error:
            if _code(error) == "PreconditionFailed":
                raise self._exists() from error
            raise

    def _head(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.head_object(**self._names)
        except self._client.exceptions.ClientError as error:
            if _code(error) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise
        return found

    def _exists(self) -> FileExistsError:
        return FileExistsError(errno.EEXIST, "it exists; pass overwrite=True to replace it", self.url)

    def __repr__(self) -> str:
        return f"<S3Target {self.url!r}>"


def _code(error: Any) -> str:
    """Return the store's code of an error of the client's."""
    return str(error.response.get("Error", {}).get("Code", ""))
