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
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, overload

from memguard.errors import UploadConflictError
from memguard.files._assemble import AssembledFile, StrPath
from memguard.files._checksums import parse_checksum
from memguard.files._chunk import ChunkWriter, Data, check_size, idling, piece_of, pieces_of
from memguard.files._data_file import DataFile
from memguard.files._finishing import Finishing, source_of
from memguard.files._folder import remove
from memguard.files._journal import HEADER_BYTES, Header, Phase, Record, mark_offset
from memguard.files._journal_file import JOURNAL, Journal, JournalFile, not_found
from memguard.files._locks import BusyError
from memguard.files._multipart import Part, crc32_of_range
from memguard.files._publishing import is_file, naming, unhide
from memguard.files._s3 import AssembledObject, S3Target
from memguard.files._sending import Sending
from memguard.files._slots import Place, in_thread
from memguard.files._state import StoreState
from memguard.values import Progress, gate_of

_FINISH = (1 << 40) + 1
"""Who finishes or verifies holds this byte of the journal."""
_SEND = _FINISH + 1
"""Who sends to an object store holds this one; taken after the other."""
_BUSY_SECONDS = 0.01


class Upload:
    """
    An upload that was begun. Made by :meth:`UploadStore.create` and :meth:`UploadStore.open`; close it, or enter it.

    Closed while a chunk is being written, it lets go of its files once that is done.

    Attributes:
        upload_id: Its name.
        total_bytes: The whole.
        chunk_bytes: Each chunk but the last.
        chunks: How many there are.
    """

    def __init__(self, state: StoreState, upload_id: str) -> None:
        self._state = state
        self._folder = state.root / upload_id
        self._began = time.monotonic()
        self._received_before: int | None = None
        self._sending = Sending(self._folder, durable=state.durable)
        self.upload_id = upload_id
        self._data = DataFile(self._folder, drops=state.drops)
        self._journal = JournalFile(self._folder, durable=state.durable)
        try:
            with self._journal.borrowed() as journal:
                header = self._opened(journal)
        except BaseException:
            self.close()
            raise
        self._nonce = header.nonce
        self.total_bytes, self.chunk_bytes, self.chunks = header.total_bytes, header.chunk_bytes, header.chunks

    def _opened(self, journal: Journal) -> Header:
        header = journal.header()
        if not self._data.open():
            # It goes last when it is published, and may have gone just now.
            header = journal.header()
            published = header.phase is Phase.PUBLISHING and is_file(
                Path(header.dest), header.device, header.inode, header.total_bytes
            )
            if header.phase is not Phase.PUBLISHED and not published:
                raise not_found(self._folder / JOURNAL)
        return header

    # ----- chunks

    def write_chunk(self, index: int, data_or_stream: Data, *, checksum: str | None = None) -> bool:
        """
        Write chunk *index*, from 0, in its place; return False if it was there before, with the same bytes.

        The store lets so many chunks at a time, the others wait; whoever waits a second for its sender lets others go
        first. Returns once the chunk would survive the death of the process; with ``durability="chunk"``, of the
        machine.

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
        with self._state.slots.taken() as place, self._writing(index, checksum, place) as writing:
            self._feed_all(writing, data_or_stream, place)
            return writing.keep()

    async def awrite_chunk(
        self, index: int, data_or_stream: Data | AsyncIterable[bytes], *, checksum: str | None = None
    ) -> bool:
        """Write a chunk as :meth:`write_chunk` does, also from an async iterable, without blocking the event loop."""
        async with self._state.slots.ataken() as place, self._awriting(index, checksum, place) as writing:
            if isinstance(data_or_stream, AsyncIterable):
                pieces = aiter(data_or_stream)
                while True:
                    async with place.aidle():
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    await in_thread(writing.feed, piece_of(piece))
            else:
                await in_thread(self._feed_all, writing, data_or_stream, place)
            return await in_thread(writing.keep)

    @contextlib.asynccontextmanager
    async def _awriting(self, index: int, checksum: str | None, place: Place) -> AsyncIterator[_Writing]:
        """Hold the lock of a chunk without blocking a thread for it: those are few, and its holder needs one."""
        import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

        while True:
            entering = self._writing(index, checksum)
            try:
                writing = await in_thread(entering.__enter__)
                break
            except BusyError:
                async with place.aidle():
                    await asyncio.sleep(_BUSY_SECONDS)
        try:
            yield writing
        finally:
            entering.__exit__(None, None, None)

    @contextlib.contextmanager
    def _writing(self, index: int, checksum: str | None, place: Place | None = None) -> Iterator[_Writing]:
        """
        Hold the lock of a chunk, against other threads and other processes.

        Raises:
            BusyError: Somebody has it, and *place* is None: else it is waited for.
        """
        self._check_index(index)
        expected = None if checksum is None else parse_checksum(checksum)
        gate_of(self._state.breaker).check()
        with contextlib.ExitStack() as stack:
            lock = self._journal.locked(mark_offset(index), wait=False)
            try:
                journal = stack.enter_context(lock)
            except BusyError:
                if place is None:
                    raise
                with place.idle():
                    journal = stack.enter_context(self._journal.locked(mark_offset(index)))
            header = journal.header()
            record = journal.record(index, header)
            if header.phase is not Phase.RECEIVING and record is None:
                raise UploadConflictError(f"{self.upload_id} was published as {header.dest}; it takes no more chunks")
            data = stack.enter_context(self._data.borrowed()) if header.phase is Phase.RECEIVING else None
            if data is not None:
                with naming(self._data.path):
                    check_size(data, header)
            writer = ChunkWriter(header, index, data, record, expected, dropper=self._data.dropper)
            yield _Writing(self._state, self._data.path, journal, header, data, index, record, writer)

    def _feed_all(self, writing: _Writing, data: Data, place: Place) -> None:
        if isinstance(data, (bytes, bytearray, memoryview)):
            writing.feed(memoryview(data).cast("B"))
            return
        for piece in idling(pieces_of(data), place.idle):  # whose errors are its own
            writing.feed(piece)

    def _check_index(self, index: int) -> None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"a chunk's index is a whole number from 0, got {index!r}")
        if not 0 <= index < self.chunks:
            raise IndexError(f"there is no chunk {index}: {self.upload_id} has {self.chunks}, from 0")

    # ----- seeing

    @property
    def published(self) -> bool:
        """Whether it was: its chunks are kept no more, but the same can still be sent and finished again."""
        with self._journal.borrowed() as journal:
            return journal.header().phase is Phase.PUBLISHED

    @property
    def missing(self) -> tuple[int, ...]:
        """The indexes of chunks that have not arrived."""
        with self._journal.borrowed() as journal:
            return tuple(journal.arrived(journal.header()).missing())

    @property
    def received_bytes(self) -> int:
        """The bytes that have arrived."""
        with self._journal.borrowed() as journal:
            return journal.arrived(journal.header()).nbytes

    @property
    def progress(self) -> Progress:
        """How far it is, in bytes; the rate is that since this object was made."""
        done, seconds = self.received_bytes, time.monotonic() - self._began
        if self._received_before is None:
            self._received_before = done
        rate = (done - self._received_before) / seconds if seconds else 0.0
        percent = 100.0 if done == self.total_bytes else min(99.9, 100.0 * done / self.total_bytes)
        eta = (self.total_bytes - done) / rate if rate else None
        level = gate_of(self._state.breaker).level
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
            header = journal.header()
            if header.phase is not Phase.PUBLISHED:
                with self._data.borrowed() as data:
                    check_size(data, header)
                    return self._sending.send(target, source_of(journal, header, data, drops=self._state.drops))
        return 0

    async def asend(self, target: S3Target) -> int:
        """Send as :meth:`send` does, without blocking the event loop."""
        return await in_thread(self.send, target)

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
        with self._journal.locked(_FINISH) as journal, self._journal.locked(_SEND):
            finishing = Finishing(self._state, self.upload_id, self._data, journal)
            found: AssembledFile | AssembledObject
            if isinstance(dest, S3Target):
                found = finishing.to_object(dest, self._sending, overwrite=overwrite)
                self._sending.drop(dest)
            else:
                with naming(self._folder):
                    # A link stays what it is.
                    found = finishing.to_file(Path(os.path.abspath(dest)), overwrite=overwrite)  # noqa: PTH100
                self._sending.drop(None)
            return found

    @overload
    async def afinish(self, dest: StrPath, *, overwrite: bool = False) -> AssembledFile: ...
    @overload
    async def afinish(self, dest: S3Target, *, overwrite: bool = False) -> AssembledObject: ...
    async def afinish(self, dest: StrPath | S3Target, *, overwrite: bool = False) -> AssembledFile | AssembledObject:
        """Publish as :meth:`finish` does, without blocking the event loop."""
        return await in_thread(lambda: self.finish(dest, overwrite=overwrite))

    def abort(self, target: S3Target | None = None) -> None:
        """
        Give it up: what has arrived is removed, and what was sent ahead. A published file stays.

        Args:
            target: Through its client the store is told to drop what was sent ahead; None for that of the last
                :meth:`send` of this object. If there is none, or the store cannot be reached, the bucket's lifecycle
                rule AbortIncompleteMultipartUpload has to drop it.
        """
        header = self._now()
        if header is not None:
            unhide(self.upload_id, header.nonce, header.dest)
            self._state.checksums.forget(header)
        begun = self._sending.begun() if header is not None else None
        self.close()
        remove(self._folder, lambda: self._now() is not None)
        self._sending.give_up(begun, target)

    def _now(self) -> Header | None:
        """Return the header of what is there under this name, if that is still this upload."""
        with contextlib.suppress(OSError):
            with (self._folder / JOURNAL).open("rb") as file:
                header = Header.unpack(file.read(HEADER_BYTES))
            if header is not None and header.nonce == self._nonce:
                return header
        return None

    def close(self) -> None:
        """Let go of its files, once nobody writes; a second call does nothing. The upload itself stays."""
        if hasattr(self, "_journal"):
            self._journal.close()
        self._data.close()

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

    def __repr__(self) -> str:
        return f"<Upload {self.upload_id!r}, {self.total_bytes} bytes in {self.chunks} chunks>"

    # ----- for the store

    def header(self) -> Header:
        """Return what it is to be, and how far it is."""
        with self._journal.borrowed() as journal:
            return journal.header()

    def verify_after_boot(self) -> None:
        """After the machine's death, let only those chunks count that are on the disk as they were written."""
        header, boot = self.header(), self._state.boot
        if header.boot == boot or header.phase is Phase.PUBLISHED:
            return
        with self._journal.locked(_FINISH) as journal:
            header = journal.header()
            if header.boot == boot or header.phase is Phase.PUBLISHED:
                return
            if not self._verify_chunks(journal, header) and header.phase is Phase.PUBLISHING:
                header = header.to(Phase.RECEIVING)
            journal.write_header(replace(header, boot=boot))

    def _verify_chunks(self, journal: Journal, header: Header) -> bool:
        """Forget the chunks that are not on the disk; tell whether all are."""
        whole = True
        with self._data.borrowed() as data:
            for index, record in journal.records(header):
                if record is None or _crc32_of(data, index, header) != record.crc32:
                    journal.forget(index, header)
                    whole = False
                elif not journal.is_marked(index):
                    journal.note(index, record, header)
        return whole


def _crc32_of(data: int, index: int, header: Header) -> int:
    return crc32_of_range(data, Part(index, index * header.chunk_bytes, header.length(index)))


@dataclass(frozen=True, slots=True)
class _Writing:
    """One chunk that is being written, all of whose files are open."""

    state: StoreState
    path: Path
    journal: Journal
    header: Header
    data: int | None
    index: int
    record: Record | None
    writer: ChunkWriter

    def feed(self, piece: memoryview) -> None:
        """Take the next piece."""
        with naming(self.path):
            self.writer.feed(piece)

    def keep(self) -> bool:
        """Note that it has arrived; return False if it had before, with the same bytes."""
        record = self.writer.end()
        with naming(self.path):
            if record is not None:
                self._note(record)
                return True
            if self.record is not None and not self.journal.is_marked(self.index):
                # Whoever wrote it died before the mark.
                self.journal.note(self.index, self.record, self.header, durable=self.state.durable_chunks)
        return False

    def _note(self, record: Record) -> None:
        data, journal, header = self.data, self.journal, self.header
        assert data is not None
        every = self.state.durable_chunks
        if every:
            os.fsync(data)
        journal.note(self.index, record, header, durable=every)
        self.state.checksums.of(header).advance(data, journal, header, self.index, record)
