"""
Parts of an upload that are sent to an object store while the others are still arriving.

A small file in the upload's folder says which multipart upload was begun. Which parts are there is asked of the store,
once: what this process sends after that it knows. A part that the store has counts if its size and its CRC-32 are those
of the bytes on the disk.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from memguard.errors import UploadNotFoundError
from memguard.files._checksums import combine_crc32
from memguard.files._journal import RECORD_BYTES, Header, Record, unpack_record
from memguard.files._multipart import Multipart, Part, SentPart, crc32_of_range, parts_of
from memguard.files._s3 import S3Target

STATE = "sending"
STATE_ASIDE = "sending.new"


@dataclass(frozen=True, slots=True)
class Begun:
    """
    A multipart upload that was begun.

    Attributes:
        names: Bucket and key of the object, as the client wants them.
        part_bytes: Of each part but the last.
        upload_id: What the store calls it.
        token: What the object will be known by.
        sender: Who sent the last part: only that one knows what is there.
    """

    names: dict[str, str]
    part_bytes: int
    upload_id: str
    token: int
    sender: str

    def pack(self) -> bytes:
        """Return its bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Begun | None:
        """Return what *data* hold; None where they hold nothing that is whole."""
        try:
            found = json.loads(data)
            names = {"Bucket": str(found["names"]["Bucket"]), "Key": str(found["names"]["Key"])}
            upload_id, sender = str(found["upload_id"]), str(found["sender"])
            return cls(names, int(found["part_bytes"]), upload_id, int(found["token"]), sender)
        except (ValueError, TypeError, KeyError):
            return None


class Ahead(NamedTuple):
    """What was sent ahead, and the token that the object will be known by."""

    multipart: Multipart
    token: int


@dataclass(frozen=True, slots=True)
class Source:
    """
    What there is of an upload to send.

    Attributes:
        data: The descriptor of its data.
        header: What it is to be.
        records: Of the chunks that have arrived, as the journal has them.
        drops: Whether to keep the page cache low.
        check: Raises UploadNotFoundError if the upload was removed meanwhile.
    """

    data: int
    header: Header
    records: bytes
    drops: bool
    check: Callable[[], None]

    def crc32(self, part: Part) -> int:
        """Return the CRC-32 of a part that is ready."""
        known = combined_crc32(self.header, part, self.records)
        return crc32_of_range(self.data, part) if known is None else known


def ready_parts(header: Header, part_bytes: int, records: bytes, sent: Container[int] = ()) -> Iterator[Part]:
    """Yield the parts of *part_bytes*, the last may be shorter, whose chunks have all arrived; not those *sent*."""
    for part in parts_of(header.total_bytes, part_bytes):
        if part.number not in sent and all(_record(records, index, header) for index in _chunks(part, header)):
            yield part


def combined_crc32(header: Header, part: Part, records: bytes) -> int | None:
    """Return the CRC-32 of a part that is ready; None where its borders are not those of chunks."""
    if part.start % header.chunk_bytes or (part.end % header.chunk_bytes and part.end != header.total_bytes):
        return None
    crc = 0
    for index in _chunks(part, header):
        record = _record(records, index, header)
        if record is None:
            return None
        crc = combine_crc32(crc, record.crc32, record.length)
    return crc


def _chunks(part: Part, header: Header) -> range:
    return range(part.start // header.chunk_bytes, -(-part.end // header.chunk_bytes))


def _record(records: bytes, index: int, header: Header) -> Record | None:
    return unpack_record(records[index * RECORD_BYTES : (index + 1) * RECORD_BYTES], index, header)


class Sending:
    """
    What of one upload was sent ahead. Whoever calls holds the lock of sending, but for :meth:`begun` and
    :meth:`give_up`.

    Args:
        folder: Of the upload.
        durable: Whether what is noted there is to survive the machine.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._path = folder / STATE
        self._durable = durable
        self._token = secrets.token_hex(8)
        self._target: S3Target | None = None
        self._known_id = ""
        self._sent: dict[int, SentPart] = {}
        self._listed: dict[int, SentPart] = {}

    @property
    def _sender(self) -> str:
        """Who sends through this object: a forked child is another."""
        return f"{self._token}-{os.getpid()}"

    def begun(self) -> Begun | None:
        """Return what was begun, by whatever process."""
        try:
            return Begun.unpack(self._path.read_bytes())
        except FileNotFoundError:
            return None

    # ----- sending ahead

    def send(self, target: S3Target, source: Source) -> int:
        """Send the parts that are ready and not there; return how many bytes."""
        self._target = target
        try:
            return self._send(target, source)
        except Exception as error:
            source.check()  # whatever failed may have failed because the upload was removed
            if not target.says_gone(error):
                raise
        self.forget()
        return self._send(target, source)

    def _send(self, target: S3Target, source: Source) -> int:
        size = target.part_size(source.header.total_bytes)
        begun = self._begun_for(target, size)
        sent = self._sent if begun is not None and self._knows(begun) else {}
        ready = list(ready_parts(source.header, size, source.records, sent))
        if not ready:
            return 0
        multipart = self._begin(target, size) if begun is None else self._resumed(target, begun)
        return self._send_each(multipart, [part for part in ready if not self._is_there(part, source)], source)

    def _send_each(self, multipart: Multipart, parts: list[Part], source: Source) -> int:
        try:
            for part in parts:
                expected = combined_crc32(source.header, part, source.records)
                multipart.send(source.data, part, drops=source.drops, expected=expected)
                source.check()
        except UploadNotFoundError:
            multipart.abort()
            raise
        return sum(part.length for part in parts)

    def _begin(self, target: S3Target, size: int) -> Multipart:
        token = 1 + secrets.randbits(63)
        multipart = target.begin(token)
        try:
            self._write(Begun(target.names, size, multipart.upload_id, token, self._sender))
        except BaseException:
            multipart.abort()
            raise
        self._known_id, self._sent, self._listed = multipart.upload_id, multipart.sent, {}
        return multipart

    # ----- going on

    def _begun_for(self, target: S3Target, size: int) -> Begun | None:
        """Return what was begun; what goes elsewhere, or in parts of another size, is given up."""
        begun = self.begun()
        if begun is not None and (begun.names, begun.part_bytes) != (target.names, size):
            self.give_up(begun, target)
            self.forget()
            return None
        return begun

    def _knows(self, begun: Begun) -> bool:
        return (begun.sender, begun.upload_id) == (self._sender, self._known_id)

    def _resumed(self, target: S3Target, begun: Begun) -> Multipart:
        """Return what was begun; ask the store for its parts, unless nobody but this object has sent any since."""
        if not self._knows(begun):
            listed = target.resume(begun.names, begun.upload_id).listed()
            # Noted before anything is sent: whoever knew the parts until now has to ask again.
            self._write(replace(begun, sender=self._sender))
            still = {number: part for number, part in self._sent.items() if listed.get(number) == part}
            self._known_id, self._sent, self._listed = begun.upload_id, still, listed
        return target.resume(begun.names, begun.upload_id, self._sent)

    def _is_there(self, part: Part, source: Source) -> bool:
        """Tell whether the store has a part that is ready; one that it has otherwise is to be sent again."""
        if part.number in self._sent:
            return True
        found = self._listed.pop(part.number, None)
        if found is None or found.length != part.length or found.crc32 != source.crc32(part):
            return False
        self._sent[part.number] = found
        return True

    # ----- the end

    def resume(self, target: S3Target, source: Source) -> Ahead | None:
        """Return what was sent ahead to *target*, of an upload that is whole, and its token; None for nothing."""
        size = target.part_size(source.header.total_bytes)
        begun = self._begun_for(target, size)
        if begun is None:
            return None
        try:
            multipart = self._resumed(target, begun)
        except Exception as error:
            if not target.says_gone(error):
                raise
            self.forget()
            return None
        for part in parts_of(source.header.total_bytes, size):
            self._is_there(part, source)
        return Ahead(multipart, begun.token)

    def publish(self, target: S3Target, source: Source, crc32: int, ahead: Ahead | None, *, overwrite: bool) -> None:
        """Publish the whole; what was sent ahead is not sent again, unless the store has dropped it meanwhile."""
        nbytes, drops = source.header.total_bytes, source.drops
        if ahead is not None:
            try:
                target.put(source.data, nbytes, crc32, overwrite=overwrite, drops=drops, ahead=ahead.multipart)
                return
            except Exception as error:
                if not target.says_gone(error):
                    raise
                source.check()
            finally:
                if ahead.multipart.ended:
                    self.forget()
            if target.holds(nbytes, crc32, ahead.token):
                return  # completed, but the answer was lost, and the client asked again
        target.put(source.data, nbytes, crc32, overwrite=overwrite, drops=drops)

    def drop(self, target: S3Target | None) -> None:
        """Forget what was begun, if it is still noted, and give it up."""
        begun = self.begun()
        if begun is not None:
            self.forget()
            self.give_up(begun, target)

    def give_up(self, begun: Begun | None, target: S3Target | None) -> None:
        """Abort a multipart upload, if the store can be reached through *target*, or the one that was sent to last."""
        through = target or self._target
        if begun is not None and through is not None:
            through.resume(begun.names, begun.upload_id).abort()

    def forget(self) -> None:
        """Forget what was begun."""
        self._path.unlink(missing_ok=True)
        self._known_id, self._sent, self._listed = "", {}, {}

    def _write(self, begun: Begun) -> None:
        aside = self._path.with_name(STATE_ASIDE)
        with aside.open("wb") as file:
            file.write(begun.pack())
            if self._durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(self._path)
