"""
How an upload becomes one file, or an object: verified, published in one step, and noted before and after that.

Noted before, so that whoever comes after a crash knows what was meant. An attempt that fails is taken back: the upload
goes on receiving.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from memguard.errors import ChecksumMismatchError, MissingChunksError, UploadConflictError
from memguard.files._assemble import AssembledFile, check_room
from memguard.files._checksums import parse_checksum
from memguard.files._chunk import check_size
from memguard.files._copying import copy_whole
from memguard.files._data_file import DataFile
from memguard.files._journal import Header, Phase
from memguard.files._journal_file import Journal
from memguard.files._publishing import (
    RENAMES_OPEN_FILES,
    Unpublished,
    give_name,
    hidden_name,
    is_file,
    naming,
    sync_folder,
    unhide,
)
from memguard.files._s3 import AssembledObject, S3Target
from memguard.files._sending import Sending, Source
from memguard.files._state import StoreState


class Finishing:
    """
    The end of one upload. Whoever calls holds the locks of finishing and of sending.

    Args:
        state: Of the store.
        name: Of the upload.
        data: Its data.
        journal: Its journal, open.
    """

    def __init__(self, state: StoreState, name: str, data: DataFile, journal: Journal) -> None:
        self._state = state
        self._name = name
        self._data = data
        self._journal = journal

    # ----- a file

    def to_file(self, target: Path, *, overwrite: bool) -> AssembledFile:
        """Publish it as *target*; if that was done before, say so."""
        header = self._journal.header()
        return self._published(header, target) or self._publish(header, target, overwrite=overwrite)

    def _published(self, header: Header, target: Path) -> AssembledFile | None:
        """Return what was published before, by an earlier call, or by one that was killed right after."""
        if header.phase is Phase.RECEIVING:
            return None
        there = Path(header.dest)
        if header.phase is Phase.PUBLISHING:
            if not is_file(there, header.device, header.inode, header.total_bytes):
                return None
            self._done(header)
        if there != target:
            raise self._elsewhere(header, str(target))
        return AssembledFile(there, header.total_bytes, self._checksum(header))

    def _publish(self, header: Header, target: Path, *, overwrite: bool) -> AssembledFile:
        with self._data.borrowed() as data:
            checksum = self._ready(header, data)
            status = os.fstat(data)
        header = replace(header.to(Phase.PUBLISHING, str(target)), device=status.st_dev, inode=status.st_ino)
        with self._noted(header):
            if overwrite and not RENAMES_OPEN_FILES:
                self._data.close()
            hidden = hidden_name(self._name, header.nonce, target)
            if give_name(self._data.path, target, hidden, overwrite=overwrite):
                if self._state.durable:
                    sync_folder(target.parent)
            else:
                header = self._publish_copy(header, target, hidden, overwrite=overwrite)
        self._done(header)
        return AssembledFile(target, header.total_bytes, checksum)

    def _publish_copy(self, header: Header, target: Path, hidden: Path, *, overwrite: bool) -> Header:
        """Publish a copy, on another file system; noted before, so that it is known again after a crash."""
        check_room(target, header.total_bytes)
        unpublished = Unpublished(target, overwrite=overwrite, durable=self._state.durable, hidden=hidden)
        with self._data.borrowed() as data, unpublished as copy:
            copy_whole(data, copy.number, header.total_bytes, drops=self._state.drops)
            status = os.fstat(copy.number)
            header = replace(header, device=status.st_dev, inode=status.st_ino)
            self._journal.write_header(header)
            copy.publish()
        return header

    @contextlib.contextmanager
    def _noted(self, header: Header) -> Iterator[None]:
        """Note that it is being published; if that fails, and it was not, note that it receives as before."""
        try:
            self._journal.write_header(header)
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                now = self._journal.header()
                if not is_file(Path(now.dest), now.device, now.inode, now.total_bytes):
                    self._journal.write_header(now.to(Phase.RECEIVING))
            raise

    # ----- an object

    def to_object(self, target: S3Target, sending: Sending, *, overwrite: bool) -> AssembledObject:
        """Publish it as *target*; if that was done before, say so."""
        header = self._journal.header()
        there = header.phase is not Phase.RECEIVING and header.dest == target.url
        if there and header.phase is Phase.PUBLISHING and self._holds(target, header):
            self._done(header)
        elif header.phase is Phase.PUBLISHED:
            if not there:
                raise self._elsewhere(header, target.url)
        else:
            checksum = self._send(header, target, sending, overwrite=overwrite)
            return AssembledObject(target.url, header.total_bytes, checksum)
        return AssembledObject(target.url, header.total_bytes, self._checksum(header))

    def _send(self, header: Header, target: S3Target, sending: Sending, *, overwrite: bool) -> str:
        with self._data.borrowed() as data:
            checksum = self._ready(header, data)
            source = source_of(self._journal, header, data, drops=self._state.drops)
            ahead = sending.resume(target, source)
            noted = replace(header.to(Phase.PUBLISHING, target.url), device=0, inode=ahead.token if ahead else 0)
            self._journal.write_header(noted)
            sending.publish(target, source, self._crc32(header), ahead, overwrite=overwrite)
        self._done(header.to(Phase.PUBLISHED, target.url))
        return checksum

    def _holds(self, target: S3Target, header: Header) -> bool:
        return target.holds(header.total_bytes, self._crc32(header), header.inode)

    # ----- both

    def _elsewhere(self, header: Header, target: str) -> UploadConflictError:
        return UploadConflictError(f"{self._name} was published as {header.dest}, not as {target}")

    def _ready(self, header: Header, data: int) -> str:
        """Return the checksum of the whole, once it is all there, right, and on the disk."""
        arrived = self._journal.arrived(header)
        if not arrived.complete:
            raise MissingChunksError(tuple(arrived.missing()))
        with naming(self._data.path):
            check_size(data, header)
            checksum = self._verified(header, data)
            if self._state.durable:
                os.fsync(data)
        unhide(self._name, header.nonce, header.dest)
        return checksum

    def _verified(self, header: Header, data: int) -> str:
        """Return the checksum that was said, verified; if none was, the CRC combined from those of the chunks."""
        checksums = self._state.checksums
        found = checksums.of(header).finish(data, self._journal, header)
        if header.checksum and not parse_checksum(header.checksum).matches(found):
            checksums.forget(header)
            raise ChecksumMismatchError(header.checksum, found)
        return found

    def _done(self, header: Header) -> None:
        """Note that it is published, and let go of its first name."""
        self._journal.write_header(header.to(Phase.PUBLISHED))
        with contextlib.suppress(PermissionError):  # Windows, while anybody has it open: it goes with the upload
            self._data.path.unlink(missing_ok=True)
        unhide(self._name, header.nonce, header.dest)
        self._state.checksums.forget(header)

    def _checksum(self, header: Header) -> str:
        """Return the checksum of a whole that was verified before."""
        return header.checksum or f"crc32:{self._crc32(header):08x}"

    def _crc32(self, header: Header) -> int:
        return self._journal.crc32(header)[1]


def source_of(journal: Journal, header: Header, data: int, *, drops: bool) -> Source:
    """Return what there is of an upload to send, as long as *journal* and *data* are open."""
    return Source(data, header, journal.packed_records(header), drops, journal.check_there)
