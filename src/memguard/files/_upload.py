"""
One upload: chunks in any order, at once, twice or not at all; in the end one file, whole and verified.

On the disk it is a folder with two files, the data and the journal. Other processes may write other chunks meanwhile:
what has arrived is always read from the journal.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, overload

from memguard.errors import ChecksumMismatchError, MissingChunksError, UploadConflictError, UploadNotFoundError
from memguard.files._assemble import AssembledFile, StrPath, check_room
from memguard.files._caching import PageDropper
from memguard.files._checksums import crc32_text, parse_checksum
from memguard.files._chunk import ChunkWriter, Data, check_size, piece_of, pieces_of
from memguard.files._copying import copy_whole
from memguard.files._journal import Header, Phase, Record, crc32_of_chunks, record_offset
from memguard.files._journal_file import JournalFile
from memguard.files._locks import OPEN, BusyError
from memguard.files._multipart import Part, crc32_of_range
from memguard.files._publishing import (
    RENAMES_OPEN_FILES,
    Unpublished,
    give_name,
    hidden_name,
    is_file,
    naming,
    sync_folder,
)
from memguard.files._s3 import AssembledObject, S3Target
from memguard.files._sending import Sending, Source
from memguard.files._slots import in_thread
from memguard.values import Progress, gate_of

if TYPE_CHECKING:
    from memguard.files._store import UploadStore

DATA = "data"
_FINISH = (1 << 40) + 1
"""Who finishes or verifies holds this byte of the journal."""
_SEND = _FINISH + 1
"""Who sends to an object store holds this one; taken after the other."""
_BUSY_SECONDS = 0.01


class Upload:
    """
    An upload that was begun. Made by :meth:`UploadStore.create` and :meth:`UploadStore.open`; close it, or enter it.

    Attributes:
        upload_id: Its name.
        total_bytes: The whole.
        chunk_bytes: Each chunk but the last.
        chunks: How many there are.
    """

    def __init__(self, store: UploadStore, upload_id: str, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._began = time.monotonic()
        self._received_before: int | None = None
        self._durable = store.durability != "none"
        self._sending = Sending(folder, durable=self._durable)
        self._data: int | None = None
        self._dropper: PageDropper | None = None
        self.upload_id = upload_id
        self._journal = JournalFile(folder, durable=self._durable)
        try:
            header = self._journal.header()
            self._open_data(header)
            self._verify_after_boot(header)
        except BaseException:
            self.close()
            raise
        self.total_bytes, self.chunk_bytes, self.chunks = header.total_bytes, header.chunk_bytes, header.chunks

    # ----- chunks

    def write_chunk(self, index: int, data_or_stream: Data, *, checksum: str | None = None) -> bool:
        """
        Write chunk *index*, from 0, in its place; return False if it was there before, with the same bytes.

        The store lets so many chunks at a time, the others wait. Returns once the chunk would survive the death of the
        process; with ``durability="chunk"``, of the machine.

        Args:
            index: Which chunk.
            data_or_stream: Bytes, a binary file, or an iterable of bytes.
            checksum: What it must have: ``"crc32:HEX"``, ``"sha256:HEX"``.

        Raises:
            ChecksumMismatchError: It is not what was said, or not of its length; nothing counts as received.
            IndexError: There is no such chunk.
            MemoryCircuitBreakerError: Memory is short; nothing was read.
            UploadConflictError: Other bytes arrived before for this chunk, or the upload was published.
            UploadNotFoundError: It was aborted or removed.
            OSError: It cannot be written.
        """
        with self._store._slots.taken(), self._writing(index, checksum) as writer:
            self._feed_all(writer, data_or_stream)
            return self._keep(index, writer)

    async def awrite_chunk(
        self, index: int, data_or_stream: Data | AsyncIterable[bytes], *, checksum: str | None = None
    ) -> bool:
        """Write a chunk as :meth:`write_chunk` does, also from an async iterable, without blocking the event loop."""
        async with self._store._slots.ataken(), self._awriting(index, checksum) as writer:
            if isinstance(data_or_stream, AsyncIterable):
                async for piece in data_or_stream:
                    await in_thread(self._feed, writer, piece_of(piece))
            else:
                await in_thread(self._feed_all, writer, data_or_stream)
            return await in_thread(self._keep, index, writer)

    @contextlib.asynccontextmanager
    async def _awriting(self, index: int, checksum: str | None) -> AsyncIterator[ChunkWriter]:
        """Hold the lock of a chunk without blocking a thread for it: those are few, and its holder needs one."""
        import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

        while True:
            writing = self._writing(index, checksum, wait=False)
            try:
                writer = await in_thread(writing.__enter__)
                break
            except BusyError:
                await asyncio.sleep(_BUSY_SECONDS)
        try:
            yield writer
        finally:
            writing.__exit__(None, None, None)

    @contextlib.contextmanager
    def _writing(self, index: int, checksum: str | None, *, wait: bool = True) -> Iterator[ChunkWriter]:
        """Hold the lock of a chunk, against other threads and other processes."""
        self._check_index(index)
        expected = None if checksum is None else parse_checksum(checksum)
        gate_of(self._store.breaker).check()
        with self._journal.locked(record_offset(index), wait=wait):
            header = self._journal.header()
            record = self._journal.record(index, header)
            if header.phase is not Phase.RECEIVING and record is None:
                raise UploadConflictError(f"{self.upload_id} was published as {header.dest}; it takes no more chunks")
            data = self._data if header.phase is Phase.RECEIVING else None
            if data is not None:
                with naming(self._folder / DATA):
                    check_size(data, header)
            yield ChunkWriter(header, index, data, record, expected, dropper=self._dropper)

    def _feed(self, writer: ChunkWriter, piece: memoryview) -> None:
        with naming(self._folder / DATA):
            writer.feed(piece)

    def _feed_all(self, writer: ChunkWriter, data: Data) -> None:
        for piece in pieces_of(data):  # whose errors are its own
            self._feed(writer, piece)

    def _keep(self, index: int, writer: ChunkWriter) -> bool:
        record = writer.end()
        if record is None:
            return False
        assert self._data is not None
        every = self._store.durability == "chunk"
        with naming(self._folder / DATA):
            if every:
                os.fsync(self._data)
            self._journal.write_record(index, record, durable=every)
            header = self._journal.header()
            prefix = self._store._prefix(self.upload_id, header)
            if prefix is not None:
                prefix.advance(self._data, header, lambda each: self._journal.record(each, header))
        return True

    def _check_index(self, index: int) -> None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"a chunk's index is a whole number from 0, got {index!r}")
        if not 0 <= index < self.chunks:
            raise IndexError(f"there is no chunk {index}: {self.upload_id} has {self.chunks}, from 0")

    # ----- seeing

    @property
    def missing(self) -> tuple[int, ...]:
        """The indexes of chunks that have not arrived."""
        there = self._journal.records(self._journal.header())
        return tuple(index for index in range(self.chunks) if index not in there)

    @property
    def received_bytes(self) -> int:
        """The bytes that have arrived."""
        return sum(record.length for record in self._journal.records(self._journal.header()).values())

    @property
    def progress(self) -> Progress:
        """How far it is, in bytes; the rate is that since this object was made."""
        done, seconds = self.received_bytes, time.monotonic() - self._began
        if self._received_before is None:
            self._received_before = done
        rate = (done - self._received_before) / seconds if seconds else 0.0
        percent = 100.0 if done == self.total_bytes else min(99.9, 100.0 * done / self.total_bytes)
        eta = (self.total_bytes - done) / rate if rate else None
        level = gate_of(self._store.breaker).level
        return Progress(done, self.total_bytes, percent, rate, eta, self.chunk_bytes, level)

    # ----- sending ahead

    def send(self, target: S3Target) -> int:
        """
        Send those parts of the object whose bytes have all arrived and that are not there yet; return how many bytes.

        So :meth:`finish` has only the rest to send. Call it after each chunk, or now and then, or not at all; in the
        next process as well, which asks the store what is there. If somebody else is sending this upload, it returns 0
        at once: the next call sends what is left, or :meth:`finish`. To send it elsewhere, or in parts of another size,
        gives up what was sent, as far as the store can be reached through *target*.

        Raises:
            AssemblyError: Somebody cut the upload's file.
            ChecksumMismatchError: The bytes on the disk are not those that arrived.
            UploadNotFoundError: It was aborted or removed.
            OSError: It cannot be read. What the client raises is passed on; either way it can be tried again.
        """
        with contextlib.suppress(BusyError), self._journal.locked(_SEND, wait=False) as journal:
            header = self._journal.header()
            if header.phase is not Phase.PUBLISHED:
                with self._source(header, journal) as source:
                    return self._sending.send(target, source)
        return 0

    async def asend(self, target: S3Target) -> int:
        """Send as :meth:`send` does, without blocking the event loop."""
        return await in_thread(self.send, target)

    @contextlib.contextmanager
    def _source(self, header: Header, journal: int) -> Iterator[Source]:
        """Open what there is to send, through descriptors of its own: the upload may be closed meanwhile."""
        assert self._data is not None
        check_size(self._data, header)
        data = os.dup(self._data)
        try:
            records, drops = self._journal.packed_records(header), self._dropper is not None
            yield Source(data, header, records, drops, lambda: self._journal.check_there(journal))
        finally:
            os.close(data)

    # ----- the end

    @overload
    def finish(self, dest: StrPath, *, overwrite: bool = False) -> AssembledFile: ...
    @overload
    def finish(self, dest: S3Target, *, overwrite: bool = False) -> AssembledObject: ...
    def finish(self, dest: StrPath | S3Target, *, overwrite: bool = False) -> AssembledFile | AssembledObject:
        """
        Publish the file under *dest*: verified, whole, in one step. Again with the same *dest*: the same answer.

        Takes milliseconds whatever the size: the data are where they were written, and get another name. Only on
        another file system they are copied, and to an object store sent, but for what :meth:`send` has sent. A checksum
        other than CRC-32 is computed as chunks come in order; what is left of that is read here.

        Raises:
            ChecksumMismatchError: The whole is not what was said.
            FileExistsError: There is a file, and *overwrite* is False.
            MissingChunksError: Not all has arrived.
            UploadConflictError: It was published elsewhere.
            UploadNotFoundError: It was aborted or removed.
            OSError: It cannot be published; it can be tried again.
        """
        with self._journal.locked(_FINISH), self._journal.locked(_SEND) as journal:
            header = self._journal.header()
            if isinstance(dest, S3Target):
                found: AssembledFile | AssembledObject = self._finish_object(header, dest, journal, overwrite=overwrite)
                self._sending.drop(dest)
            else:
                target = Path(os.path.abspath(dest))  # noqa: PTH100 - a link stays what it is
                with naming(self._folder):
                    found = self._published(header, target) or self._publish(header, target, overwrite=overwrite)
                self._sending.drop(None)
            self._store._forget_prefix(self.upload_id)
            return found

    @overload
    async def afinish(self, dest: StrPath, *, overwrite: bool = False) -> AssembledFile: ...
    @overload
    async def afinish(self, dest: S3Target, *, overwrite: bool = False) -> AssembledObject: ...
    async def afinish(self, dest: StrPath | S3Target, *, overwrite: bool = False) -> AssembledFile | AssembledObject:
        """Publish as :meth:`finish` does, without blocking the event loop."""
        return await in_thread(lambda: self.finish(dest, overwrite=overwrite))

    def _finish_object(self, header: Header, target: S3Target, journal: int, *, overwrite: bool) -> AssembledObject:
        crc = crc32_of_chunks(self._journal.records(header))
        there = header.phase is not Phase.RECEIVING and header.dest == target.url
        if there and header.phase is Phase.PUBLISHING and target.holds(header.total_bytes, crc, header.inode):
            self._done(header)
        elif header.phase is Phase.PUBLISHED:
            if not there:
                raise self._elsewhere(header, target.url)
        else:
            checksum = self._ready(header)
            with self._source(header, journal) as source:
                ahead = self._sending.resume(target, source)
                noted = replace(header.to(Phase.PUBLISHING, target.url), device=0, inode=ahead.token if ahead else 0)
                self._journal.write_header(noted)
                self._sending.publish(target, source, crc, ahead, overwrite=overwrite)
            self._done(header.to(Phase.PUBLISHED, target.url))
            return AssembledObject(target.url, header.total_bytes, checksum)
        return AssembledObject(target.url, header.total_bytes, self._checksum(header))

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

    def _elsewhere(self, header: Header, target: str) -> UploadConflictError:
        return UploadConflictError(f"{self.upload_id} was published as {header.dest}, not as {target}")

    def _ready(self, header: Header) -> str:
        """Return the checksum of the whole, once it is all there and right."""
        records = self._journal.records(header)
        if len(records) < header.chunks:
            raise MissingChunksError(tuple(index for index in range(header.chunks) if index not in records))
        data = self._opened(header)
        with naming(self._folder / DATA):
            check_size(data, header)
            checksum = self._verified(header, data, records)
        self._unhide(header)
        return checksum

    def _publish(self, header: Header, target: Path, *, overwrite: bool) -> AssembledFile:
        checksum, data = self._ready(header), self._opened(header)
        if self._durable:
            os.fsync(data)
        status = os.fstat(data)
        header = replace(header.to(Phase.PUBLISHING, str(target)), device=status.st_dev, inode=status.st_ino)
        self._journal.write_header(header)
        if overwrite and not RENAMES_OPEN_FILES:
            self._close_data()
        if give_name(self._folder / DATA, target, self._hidden(target), overwrite=overwrite):
            if self._durable:
                sync_folder(target.parent)
        else:
            self._publish_copy(header, target, overwrite=overwrite)
        self._done(header)
        return AssembledFile(target, header.total_bytes, checksum)

    def _publish_copy(self, header: Header, target: Path, *, overwrite: bool) -> None:
        """Publish a copy, on another file system; noted before, so that it is known again after a crash."""
        data = self._opened(header)
        check_room(target, header.total_bytes)
        with Unpublished(target, overwrite=overwrite, durable=self._durable, hidden=self._hidden(target)) as copy:
            copy_whole(data, copy.number, header.total_bytes, drops=self._store._drops)
            status = os.fstat(copy.number)
            self._journal.write_header(replace(header, device=status.st_dev, inode=status.st_ino))
            copy.publish()

    def _done(self, header: Header) -> None:
        """Note that it is published, and let go of its first name."""
        self._journal.write_header(header.to(Phase.PUBLISHED))
        with contextlib.suppress(PermissionError):  # Windows, while anybody has it open: it goes with the upload
            (self._folder / DATA).unlink(missing_ok=True)
        self._unhide(header)

    def _hidden(self, target: Path) -> Path:
        return hidden_name(self.upload_id, target)

    def _unhide(self, header: Header) -> None:
        """Remove what an attempt that was cut short left beside its destination."""
        if header.dest and "://" not in header.dest:
            with contextlib.suppress(OSError):
                self._hidden(Path(header.dest)).unlink()

    def _verified(self, header: Header, data: int, records: dict[int, Record]) -> str:
        """Return the checksum that was said, verified; if none was, the CRC combined from those of the chunks."""
        prefix = self._store._prefix(self.upload_id, header)
        found = crc32_text(crc32_of_chunks(records)) if prefix is None else prefix.finish(data, header)
        if header.checksum and not parse_checksum(header.checksum).matches(found):
            raise ChecksumMismatchError(header.checksum, found)
        return found

    def _checksum(self, header: Header) -> str:
        """Return the checksum of a whole that was verified before."""
        return header.checksum or crc32_text(crc32_of_chunks(self._journal.records(header)))

    def abort(self, target: S3Target | None = None) -> None:
        """
        Give it up: what has arrived is removed, and what was sent ahead. A published file stays.

        Args:
            target: Through its client the store is told to drop what was sent ahead; None for that of the last
                :meth:`send` of this object. If there is none, or the store cannot be reached, the bucket's lifecycle
                rule AbortIncompleteMultipartUpload has to drop it.
        """
        with contextlib.suppress(UploadNotFoundError, ValueError):
            self._unhide(self._journal.header())
        begun = self._sending.begun()
        self.close()
        self._store._remove(self._folder)
        self._store._forget_prefix(self.upload_id)
        self._sending.give_up(begun, target)

    def close(self) -> None:
        """Let go of its files; a second call does nothing. The upload itself stays."""
        self._journal.close()
        self._close_data()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        return f"<Upload {self.upload_id!r}, {self.total_bytes} bytes in {self.chunks} chunks>"

    # ----- its files

    def _open_data(self, header: Header) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._data = os.open(self._folder / DATA, OPEN)
        if self._data is None and header.phase is Phase.RECEIVING:
            raise self._journal.not_found()
        if self._data is not None and self._store._drops:
            self._dropper = PageDropper(self._data)

    def _opened(self, header: Header) -> int:
        """Return the descriptor of the data; opened again where it was closed to be published, and was not."""
        if self._data is None:
            self._open_data(header)
        assert self._data is not None
        return self._data

    def _close_data(self) -> None:
        if self._data is not None:
            os.close(self._data)
            self._data = None

    def _verify_after_boot(self, header: Header) -> None:
        """After the machine's death, let only those chunks count that are on the disk as they were written."""
        boot, journal = self._store.boot, self._journal
        if header.boot == boot or header.phase is not Phase.RECEIVING:
            return
        with journal.locked(_FINISH):
            header = journal.header()
            if header.boot == boot:
                return
            assert self._data is not None
            for index, record in journal.records(header).items():
                chunk = Part(index, index * header.chunk_bytes, record.length)
                if crc32_of_range(self._data, chunk) != record.crc32:
                    journal.write_record(index, None)
            journal.write_header(Header(header.total_bytes, header.chunk_bytes, header.checksum, boot))
