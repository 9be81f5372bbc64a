"""
An object store as the place where an upload is published: S3, and what speaks its protocol.

The object appears whole or not at all: in parts, read from the upload's file, completed once all are there and right.
Works with a client of boto3 that the caller made; so nothing of boto3 is loaded here.

See:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html: parts of 5 MiB to 5 GiB, at most 10,000.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memguard.errors import AssemblyError, ChecksumMismatchError
from memguard.files._checksums import combine_crc32, crc32_text
from memguard.files._multipart import Multipart, Part, SentPart, parts_of
from memguard.units import ByteSize, parse_bytes

MIB = 1024**2
_LEAST_PART_BYTES = 5 * MIB
_MOST_PART_BYTES = 5 * 1024 * MIB
_MOST_PARTS = 10_000
_NOTE = "memguard-crc32"
"""Metadata of the object: by it one is known again that was completed right before a crash."""
_SENT_AHEAD = "memguard-upload"
"""The same of one whose parts were sent when nobody knew its CRC yet."""


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


class S3Target:
    """
    An object to publish an upload as: ``upload.finish(S3Target(client, "films", "film.mp4"))``.

    Each part goes with its CRC-32, which the store verifies; and together they have to be that of the whole. Whatever
    fails when it is published, the parts are aborted. If the process is killed meanwhile nobody can: let the bucket
    have a lifecycle rule, AbortIncompleteMultipartUpload. Parts may be sent as they arrive: :meth:`Upload.send`.

    Args:
        client: ``boto3.client("s3")``; its retries are its own matter.
        bucket: Where.
        key: The name of the object.
        part_bytes: Of each part, 5 MiB to 5 GiB; more are taken where there would be more than 10,000 parts.

    Attributes:
        url: ``"s3://bucket/key"``.
        names: Bucket and key, as the client wants them.

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
        self.names = {"Bucket": bucket, "Key": key}
        self.url = f"s3://{bucket}/{key}"

    def part_size(self, nbytes: int) -> int:
        """Return the size of the parts, but for the last, of an object of *nbytes*."""
        least = -(-nbytes // _MOST_PARTS)
        return max(self._part_bytes, -(-least // MIB) * MIB)

    def holds(self, nbytes: int, crc32: int, token: int = 0) -> bool:
        """Tell whether the object is there, and is this one; *token* is that it was begun with, 0 for none."""
        found = self._head()
        if found is None:
            return False
        notes = found.get("Metadata", {})
        known = notes.get(_NOTE) == crc32_text(crc32) or (token != 0 and notes.get(_SENT_AHEAD) == str(token))
        return bool(found["ContentLength"] == nbytes and known)

    def begin(self, token: int) -> Multipart:
        """Begin a multipart upload of data whose CRC-32 is not known yet."""
        return self._begin({_SENT_AHEAD: str(token)})

    def resume(self, names: Mapping[str, str], upload_id: str, sent: dict[int, SentPart] | None = None) -> Multipart:
        """Return a multipart upload that was begun before, not necessarily of this object, but for this client."""
        return Multipart(self._client, names, upload_id, sent)

    def says_gone(self, error: Exception) -> bool:
        """Tell whether *error* is the store's word that there is no such multipart upload."""
        return isinstance(error, self._client.exceptions.ClientError) and _code(error) == "NoSuchUpload"

    def put(
        self, data: int, nbytes: int, crc32: int, *, overwrite: bool, drops: bool, ahead: Multipart | None = None
    ) -> None:
        """
        Publish the file at the descriptor *data*.

        Args:
            data: Open for reading.
            nbytes: Of the whole.
            crc32: Of the whole.
            overwrite: Whether it may take the place of another object.
            drops: Whether to keep the page cache low.
            ahead: What was begun before; its parts are not sent again.

        Raises:
            AssemblyError: The store says that the object has another size.
            ChecksumMismatchError: What was read, or what arrived, is not the whole.
            FileExistsError: There is an object, and *overwrite* is False.
        """
        if not overwrite and self._head() is not None:
            raise self._exists()
        multipart = ahead or self._begin({_NOTE: crc32_text(crc32)})
        try:
            self._send(multipart, data, nbytes, crc32, drops=drops)
            self._complete(multipart, overwrite=overwrite)
        except BaseException:
            multipart.abort()
            raise
        found = self._head()
        if found is None or found["ContentLength"] != nbytes:
            size = None if found is None else found["ContentLength"]
            raise AssemblyError(f"{self.url} has {size} bytes, not the {nbytes} that were sent")

    def _begin(self, notes: dict[str, str]) -> Multipart:
        begun = self._client.create_multipart_upload(**self.names, ChecksumAlgorithm="CRC32", Metadata=notes)
        return Multipart(self._client, self.names, begun["UploadId"])

    def _send(self, multipart: Multipart, data: int, nbytes: int, crc32: int, *, drops: bool) -> None:
        whole = 0
        for part in parts_of(nbytes, self.part_size(nbytes)) if nbytes else [Part(1, 0, 0)]:
            if part.number not in multipart.sent:
                multipart.send(data, part, drops=drops)
            whole = combine_crc32(whole, multipart.sent[part.number].crc32, part.length)
        if whole != crc32:
            raise ChecksumMismatchError(crc32_text(crc32), crc32_text(whole))

    def _complete(self, multipart: Multipart, *, overwrite: bool) -> None:
        operation = self._client.meta.service_model.operation_model("CompleteMultipartUpload")
        only_new = not overwrite and "IfNoneMatch" in operation.input_shape.members
        condition = {"IfNoneMatch": "*"} if only_new else {}
        try:
            multipart.complete(**condition)
        except self._client.exceptions.ClientError as error:
            if _code(error) == "PreconditionFailed":
                raise self._exists() from error
            raise

    def _head(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.head_object(**self.names)
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
