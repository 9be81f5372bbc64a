"""
One upload: chunks in any order, at once, twice or not at all; in the end one file, whole and verified.

On the disk it is a folder with two files, the data and the journal. Other processes may write other chunks meanwhile:
what has arrived is always read from the journal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, overload

from memguard.errors import ChecksumMismatchError, MissingChunksError, UploadConflictError, UploadNotFoundError
from memguard.files._assemble import AssembledFile, StrPath, check_room
from memguard.files._caching import PageDropper
from memguard.files._checksums import combine_crc32, crc32_text, parse_checksum
from memguard.files._chunk import ChunkWriter, Data, check_size, piece_of, pieces_of, write_record
from memguard.files._copying import BUFFER_BYTES, copy_whole, read_at, read_into, write_all
from memguard.files._journal import (
    HEADER_BYTES,
    RECORD_BYTES,
    Header,
    Phase,
    Record,
    record_offset,
    unpack_record,
    unpack_records,
)
from memguard.files._locks import OPEN, BusyError, locked, mark_in_use
from memguard.files._publishing import RENAMES_OPEN_FILES, Unpublished, naming
from memguard.files._s3 import AssembledObject, S3Target
from memguard.files._sending import Sending, Source
from memguard.files._slots import in_thread
from memguard.values import Progress, gate_of

if TYPE_CHECKING:
    from memguard.files._store import UploadStore

DATA, JOURNAL = "data", "journal"
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
        self._closed = False
        self._began = time.monotonic()
        self._received_before: int | None = None
        self._sending = Sending(folder, durable=store.durability != "none")
        self.upload_id = upload_id
        try:
            self._journal = os.open(folder / JOURNAL, OPEN)
        except (FileNotFoundError, NotADirectoryError):
            raise self._not_found() from None
        self._data: int | None = None
        self._dropper: PageDropper | None = None
        try:
            if not mark_in_use(self._journal):
                raise self._not_found()  # it is being removed
            header = self._header()
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
        with self._locked(record_offset(index), wait=wait):
            header, record = self._header(), self.record(index)
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
        with naming(self._folder / DATA):
            if self._store.durability == "chunk":
                os.fsync(self._data)
            write_record(self._journal, index, record)
            if self._store.durability == "chunk":
                os.fsync(self._journal)
            header = self._header()
            prefix = self._store._prefix(self.upload_id, header)
            if prefix is not None:
                prefix.advance(self._data, header, self.record)
        return True

    def _check_index(self, index: int) -> None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"a chunk's index is a whole number from 0, got {index!r}")
        if not 0 <= index < self.chunks:
            raise IndexError(f"there is no chunk {index}: {self.upload_id} has {self.chunks}, from 0")

    # ----- seeing

    def record(self, index: int) -> Record | None:
        """Return the record of a chunk that has arrived, else None."""
        return unpack_record(self._read(record_offset(index), RECORD_BYTES), index, self._header())

    def _records(self, header: Header) -> dict[int, Record]:
        return unpack_records(self._read(HEADER_BYTES, header.chunks * RECORD_BYTES), header)

    @property
    def missing(self) -> tuple[int, ...]:
        """The indexes of chunks that have not arrived."""
        there = self._records(self._header())
        return tuple(index for index in range(self.chunks) if index not in there)

    @property
    def received_bytes(self) -> int:
        """The bytes that have arrived."""
        return sum(record.length for record in self._records(self._header()).values())

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
        with contextlib.suppress(BusyError), self._locked(_SEND, wait=False) as journal:
            header = self._header()
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
            records = read_at(journal, header.chunks * RECORD_BYTES, HEADER_BYTES)
            yield Source(data, header, records, self._dropper is not None, lambda: self._check_there(journal))
        finally:
            os.close(data)

    def _check_there(self, journal: int) -> None:
        try:
            there = (self._folder / JOURNAL).stat()
        except FileNotFoundError:
            raise self._not_found() from None
        if not os.path.samestat(there, os.fstat(journal)):
            raise self._not_found()

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
        with self._locked(_FINISH), self._locked(_SEND) as journal:
            header = self._header()
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
        crc = self._crc32(header)
        there = header.phase is not Phase.RECEIVING and header.dest == target.url
        if there and header.phase is Phase.PUBLISHING and target.holds(header.total_bytes, crc, header.inode):
            self._done(header)
        elif header.phase is Phase.PUBLISHED:
            if not there:
                raise self._elsewhere(header, target.url)
        else:
            self._ready(header)
            with self._source(header, journal) as source:
                ahead = self._sending.resume(target, source)
                noted = replace(header.to(Phase.PUBLISHING, target.url), device=0, inode=ahead.token if ahead else 0)
                self._write_header(noted, durable=self._store.durability != "none")
                self._sending.publish(target, source, crc, ahead, overwrite=overwrite)
            header = header.to(Phase.PUBLISHED, target.url)
            self._done(header)
        return AssembledObject(target.url, header.total_bytes, self._checksum(header))

    def _published(self, header: Header, target: Path) -> AssembledFile | None:
        """Return what was published before, by an earlier call, or by one that was killed right after."""
        if header.phase is Phase.RECEIVING:
            return None
        there = Path(header.dest)
        if header.phase is Phase.PUBLISHING:
            if not _is_file(there, header):
                return None
            self._done(header)
        if there != target:
            raise self._elsewhere(header, str(target))
        return AssembledFile(there, header.total_bytes, self._checksum(header))

    def _elsewhere(self, header: Header, target: str) -> UploadConflictError:
        return UploadConflictError(f"{self.upload_id} was published as {header.dest}, not as {target}")

    def _ready(self, header: Header) -> int:
        """Return the descriptor of the data, once they are all there and right."""
        missing = self.missing
        if missing:
            raise MissingChunksError(missing)
        data = self._opened(header)
        with naming(self._folder / DATA):
            check_size(data, header)
            self._verify(header)
        self._unhide(header)
        return data

    def _publish(self, header: Header, target: Path, *, overwrite: bool) -> AssembledFile:
        data = self._ready(header)
        durable = self._store.durability != "none"
        if durable:
            os.fsync(data)
        status = os.fstat(data)
        header = replace(header.to(Phase.PUBLISHING, str(target)), device=status.st_dev, inode=status.st_ino)
        self._write_header(header, durable=durable)
        if overwrite and not RENAMES_OPEN_FILES:
            self._close_data()
        if _name(self._folder / DATA, target, self._hidden(target), overwrite=overwrite):
            if durable:
                _sync_folder(target.parent)
        else:
            self._publish_copy(header, target, overwrite=overwrite)
        self._done(header)
        return AssembledFile(target, header.total_bytes, self._checksum(header))

    def _publish_copy(self, header: Header, target: Path, *, overwrite: bool) -> None:
        """Publish a copy, on another file system; noted before, so that it is known again after a crash."""
        data = self._opened(header)
        durable = self._store.durability != "none"
        check_room(target, header.total_bytes)
        with Unpublished(target, overwrite=overwrite, durable=durable, hidden=self._hidden(target)) as copy:
            copy_whole(data, copy.number, header.total_bytes, drops=self._store._drops)
            status = os.fstat(copy.number)
            self._write_header(replace(header, device=status.st_dev, inode=status.st_ino), durable=durable)
            copy.publish()

    def _done(self, header: Header) -> None:
        """Note that it is published, and let go of its first name."""
        self._write_header(header.to(Phase.PUBLISHED), durable=self._store.durability != "none")
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

    def _verify(self, header: Header) -> None:
        if not header.checksum:
            return
        assert self._data is not None
        expected = parse_checksum(header.checksum)
        prefix = self._store._prefix(self.upload_id, header)
        found = crc32_text(self._crc32(header)) if prefix is None else prefix.finish(self._data, header)
        if not expected.matches(found):
            raise ChecksumMismatchError(header.checksum, found)

    def _checksum(self, header: Header) -> str:
        """Return the checksum of a whole that was verified: what was said, or the CRC combined from those of chunks."""
        return header.checksum or crc32_text(self._crc32(header))

    def _crc32(self, header: Header) -> int:
        crc = 0
        for _, record in sorted(self._records(header).items()):
            crc = combine_crc32(crc, record.crc32, record.length)
        return crc

    def abort(self, target: S3Target | None = None) -> None:
        """
        Give it up: what has arrived is removed, and what was sent ahead. A published file stays.

        Args:
            target: Through its client the store is told to drop what was sent ahead; None for that of the last
                :meth:`send` of this object. If there is none, or the store cannot be reached, the bucket's lifecycle
                rule AbortIncompleteMultipartUpload has to drop it.
        """
        with contextlib.suppress(UploadNotFoundError, ValueError):
            self._unhide(self._header())
        begun = self._sending.begun()
        self.close()
        self._store._remove(self._folder)
        self._store._forget_prefix(self.upload_id)
        self._sending.give_up(begun, target)

    def close(self) -> None:
        """Let go of its files; a second call does nothing. The upload itself stays."""
        if self._closed:
            return
        self._closed = True
        os.close(self._journal)
        self._close_data()

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

    # ----- the journal

    def _not_found(self) -> UploadNotFoundError:
        return UploadNotFoundError(f"there is no upload {self.upload_id!r}: never begun, aborted, or removed as stale")

    def _read(self, offset: int, nbytes: int) -> bytes:
        if self._closed:
            raise ValueError(f"{self!r} is closed; open it again")
        with naming(self._folder / JOURNAL):
            return read_at(self._journal, nbytes, offset)

    def _header(self) -> Header:
        header = Header.unpack(self._read(0, HEADER_BYTES))
        with naming(self._folder / JOURNAL):
            removed = os.fstat(self._journal).st_nlink == 0
        if header is None or removed:
            raise self._not_found()
        return header

    def _write_header(self, header: Header, *, durable: bool) -> None:
        write_all(self._journal, header.pack().ljust(HEADER_BYTES, b"\0"), 0)
        if durable:
            os.fsync(self._journal)

    def _open_data(self, header: Header) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._data = os.open(self._folder / DATA, OPEN)
        if self._data is None and header.phase is Phase.RECEIVING:
            raise self._not_found()
        if self._data is not None and self._store._drops:
            self._dropper = PageDropper(self._data)

    @contextlib.contextmanager
    def _locked(self, start: int, *, wait: bool = True) -> Iterator[int]:
        """Hold one byte of the journal; yield its descriptor, a new one."""
        if self._closed:
            raise ValueError(f"{self!r} is closed; open it again")
        with contextlib.ExitStack() as stack:
            try:
                with naming(self._folder / JOURNAL):
                    number = stack.enter_context(locked(self._folder / JOURNAL, start, wait=wait))
            except FileNotFoundError:
                raise self._not_found() from None
            yield number

    def _verify_after_boot(self, header: Header) -> None:
        """After the machine's death, let only those chunks count that are on the disk as they were written."""
        boot = self._store.boot
        if header.boot == boot or header.phase is not Phase.RECEIVING:
            return
        with self._locked(_FINISH):
            header = self._header()
            if header.boot == boot:
                return
            for index, record in self._records(header).items():
                if self._crc(header, index) != record.crc32:
                    write_all(self._journal, b"\0" * RECORD_BYTES, record_offset(index))
            fresh = Header(header.total_bytes, header.chunk_bytes, header.checksum, boot)
            self._write_header(fresh, durable=self._store.durability != "none")

    def _crc(self, header: Header, index: int) -> int | None:
        assert self._data is not None
        buffer = memoryview(bytearray(BUFFER_BYTES))
        crc, at = 0, index * header.chunk_bytes
        end = at + header.length(index)
        while at < end:
            got = read_into(self._data, buffer[: min(BUFFER_BYTES, end - at)], at)
            if not got:
                return None
            crc = zlib.crc32(buffer[:got], crc)
            at += got
        return crc


def hidden_name(upload_id: str, target: Path) -> Path:
    """Return what a file that is being published as *target* may be called for a moment."""
    return target.parent / f".{upload_id}.memguard-part"


def _is_file(path: Path, header: Header) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    found = (status.st_dev, status.st_ino, status.st_size)
    return found == (header.device, header.inode, header.total_bytes)


def _name(data: Path, target: Path, hidden: Path, *, overwrite: bool) -> bool:
    """Give *data* the name *target* as well, in one step; return False where it takes a copy."""
    try:
        if not overwrite:
            os.link(data, target)
            return True
        hidden.unlink(missing_ok=True)
        os.link(data, hidden)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            return False
        raise
    hidden.replace(target)
    hidden.unlink(missing_ok=True)  # where both were names of one file, nothing was replaced
    return True


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
