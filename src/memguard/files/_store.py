"""
A folder of uploads.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from memguard.errors import AssemblyError, UploadConflictError, UploadNotFoundError
from memguard.files import _folder
from memguard.files._assemble import StrPath
from memguard.files._caching import in_container
from memguard.files._checksums import parse_checksum
from memguard.files._journal import MOST_BYTES, MOST_CHUNK_BYTES, Header, Phase
from memguard.files._journal_file import JOURNAL
from memguard.files._locks import folder_locked
from memguard.files._names import check_name
from memguard.files._running_checksum import RunningChecksums
from memguard.files._slots import Slots, in_thread
from memguard.files._state import StoreState
from memguard.files._upload import Upload
from memguard.forking import forget_in_child
from memguard.units import ByteSize, parse_bytes
from memguard.values import Gate

Durability: TypeAlias = Literal["publish", "chunk", "none"]
PageCache: TypeAlias = Literal["auto", "keep", "drop"]
_SWEEP_SECONDS = 300.0
_RACE_SECONDS = 30.0
"""So long a caller tries again where others begin and give up uploads of the same name all the time."""
_MOST_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class UploadStatistics:
    """
    What a store is at.

    Attributes:
        active: Chunks that are being written.
        waiting: Chunks that wait for their turn.
    """

    active: int
    waiting: int


class UploadStore:
    """
    Uploads in one folder, each in as many chunks as it takes. Several processes may share the folder.

    Args:
        root: The folder; made if it is missing.
        concurrency: Chunks that are written at a time in this process; the others wait, first come, first served.
        reserve_space: Whether the disk's room for the whole is taken when an upload begins.
        max_upload_bytes: No upload may be larger.
        min_free_bytes: So much of the disk stays free.
        durability: What survives the death of the machine: ``"publish"``: what was published; ``"chunk"``: each chunk
            that was acknowledged; ``"none"``: nothing is waited for. After a reboot the other two ask again for those
            chunks that the disk does not have. The death of a process costs nothing in any case.
        page_cache: ``"drop"`` lets the kernel forget what was written, so that it does not count against a container's
            limit; ``"auto"`` does in a container with a limit.
        max_age: Seconds without a chunk after which an upload is stale.
        max_chunks: No upload may come in more: each takes 17 bytes of the journal, and time.
        breaker: Asked before each chunk; None for the default one.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument cannot be meant.
        OSError: The folder cannot be made.
    """

    def __init__(
        self,
        root: StrPath,
        *,
        concurrency: int = 5,
        reserve_space: bool = True,
        max_upload_bytes: ByteSize | None = None,
        min_free_bytes: ByteSize = "64 MiB",
        durability: Durability = "publish",
        page_cache: PageCache = "auto",
        max_age: float = 86_400.0,
        max_chunks: int = 65_536,
        breaker: Gate | None = None,
    ) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int):
            raise TypeError(f"concurrency is a whole number, got {concurrency!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency is 1 or more, got {concurrency!r}")
        if durability not in get_args(Durability):
            raise ValueError(f"durability is 'publish', 'chunk' or 'none', got {durability!r}")
        if page_cache not in get_args(PageCache):
            raise ValueError(f"page_cache is 'auto', 'keep' or 'drop', got {page_cache!r}")
        if isinstance(max_chunks, bool) or not isinstance(max_chunks, int):
            raise TypeError(f"max_chunks is a whole number, got {max_chunks!r}")
        if max_chunks < 1:
            raise ValueError(f"max_chunks is 1 or more, got {max_chunks!r}")
        self._max_age = _age(max_age, "max_age")
        self._max_bytes = None if max_upload_bytes is None else parse_bytes(max_upload_bytes)
        self.max_chunks = max_chunks
        self.durability: Durability = durability
        self._slots = Slots(concurrency)
        self._lock = threading.RLock()
        self._swept_at = time.monotonic()
        forget_in_child(self)
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - a link stays what it is
        self.root.mkdir(parents=True, exist_ok=True)
        self._room = _folder.Room(self.root, reserves=bool(reserve_space), min_free_bytes=parse_bytes(min_free_bytes))
        self._state = StoreState(
            root=self.root,
            durable=durability != "none",
            durable_chunks=durability == "chunk",
            drops=page_cache == "drop" or (page_cache == "auto" and in_container()),
            boot=_boot(),
            breaker=breaker,
            slots=self._slots,
            checksums=RunningChecksums(),
        )

    @property
    def boot(self) -> str:
        """What tells this boot of the machine from others: after another one, what has arrived is verified."""
        return self._state.boot

    @boot.setter
    def boot(self, boot: str) -> None:
        self._state = replace(self._state, boot=boot)

    # ----- uploads

    def create(
        self,
        upload_id: str,
        *,
        total_bytes: ByteSize,
        chunk_bytes: ByteSize,
        checksum: str | None = None,
        content_id: str | None = None,
    ) -> Upload:
        """
        Begin an upload; the same again opens it.

        One that was published is opened again only if *checksum* or *content_id* say that it is the same; else its
        record makes room for the new one. What was published stays where it is.

        Args:
            upload_id: Its name: letters, digits, ``.``, ``_`` and ``-``.
            total_bytes: The whole.
            chunk_bytes: Each chunk but the last.
            checksum: What the whole must have, ``"sha256:HEX"`` or ``"crc32:HEX"``.
            content_id: What its sender calls these contents, such as size and time of change: a file that was changed
                is another, even of the same size. Up to 256 bytes.

        Raises:
            AssemblyError: It is larger than the store takes, or in more chunks; or what is there is damaged.
            InsufficientDiskError: The disk has no room for it.
            UnsafeNameError: The name is not safe.
            UploadConflictError: There is one of that name with other sizes, another checksum or content.
            ValueError: A size, the checksum or the content's name cannot be meant.
        """
        check_name(upload_id)
        header = self._wanted(total_bytes, chunk_bytes, checksum, content_id)
        self._sweep_now_and_then()
        deadline = time.monotonic() + _RACE_SECONDS
        while True:
            with contextlib.suppress(UploadNotFoundError):  # somebody gave it up meanwhile
                upload = self._begun(upload_id, header)
                if upload is not None and self._is_that(upload, header):
                    upload.verify_after_boot()
                    return upload
            if time.monotonic() > deadline:
                raise UploadConflictError(f"others begin and give up {upload_id!r} all the time; take another name")
            time.sleep(0)

    async def acreate(
        self,
        upload_id: str,
        *,
        total_bytes: ByteSize,
        chunk_bytes: ByteSize,
        checksum: str | None = None,
        content_id: str | None = None,
    ) -> Upload:
        """Begin an upload as :meth:`create` does, without blocking the event loop."""
        return await in_thread(
            self.create,
            upload_id,
            total_bytes=total_bytes,
            chunk_bytes=chunk_bytes,
            checksum=checksum,
            content_id=content_id,
        )

    def open(self, upload_id: str) -> Upload:
        """
        Open an upload that was begun, by this process or another, before a crash or after.

        Raises:
            AssemblyError: Its journal is damaged.
            UnsafeNameError: The name is not safe.
            UploadNotFoundError: There is none.
        """
        upload = Upload(self._state, check_name(upload_id))
        upload.verify_after_boot()
        return upload

    def abort(self, upload_id: str) -> None:
        """
        Give an upload up by its name, also one whose journal is damaged; see :meth:`Upload.abort`.

        Raises:
            AssemblyError: There is something of that name, and it is not ours.
            UnsafeNameError: The name is not safe.
            UploadNotFoundError: There is none.
        """
        folder = self.root / check_name(upload_id)
        try:
            upload = self.open(upload_id)
        except UploadNotFoundError:
            raise
        except AssemblyError:
            if not _folder.remove(folder):
                raise
        else:
            upload.abort()

    def uploads(self) -> tuple[str, ...]:
        """Return the names of the uploads there are, published ones included until they are stale."""
        folders = (path.parent for path in self.root.glob(f"[!.]*/{JOURNAL}"))
        return tuple(sorted(folder.name for folder in folders if _folder.is_ours(folder)))

    def statistics(self) -> UploadStatistics:
        """Return how many chunks are being written, and how many wait."""
        return UploadStatistics(self._slots.active, self._slots.waiting)

    def remove_stale(self, older_than: float | None = None) -> tuple[str, ...]:
        """
        Remove uploads that nobody has open and that have had no chunk for long; return their names.

        Nothing else in the folder is touched.

        Args:
            older_than: Seconds; *max_age* if None.
        """
        age = self._max_age if older_than is None else _age(older_than, "older_than")
        # Times of files are those of the wall: they have to be understood by other processes, after a reboot.
        before = time.time() - age
        removed = []
        with os.scandir(self.root) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            folder = self.root / entry.name
            if not entry.is_dir(follow_symlinks=False) or _folder.changed_at(folder) > before:
                continue
            if _folder.is_leftover(entry):
                _folder.remove_leftover(folder)
            elif not entry.name.startswith(".") and _folder.remove_unless_live(folder):
                removed.append(entry.name)
        return tuple(removed)

    # ----- inside

    def _wanted(
        self, total_bytes: ByteSize, chunk_bytes: ByteSize, checksum: str | None, content_id: str | None
    ) -> Header:
        total, chunk = parse_bytes(total_bytes), parse_bytes(chunk_bytes)
        if not 1 <= chunk <= MOST_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is 1 byte to 4 GiB, got {chunk_bytes!r}")
        most = MOST_BYTES if self._max_bytes is None else self._max_bytes
        if total > most:
            raise AssemblyError(f"an upload of {total} bytes is larger than this store takes: {most} bytes")
        header = Header(
            total, chunk, _checksum(checksum), self._state.boot, content_id=_content(content_id), nonce=_nonce()
        )
        if header.chunks > self.max_chunks:
            self._room.check(total)
            least = -(-total // self.max_chunks)
            raise AssemblyError(
                f"{header.chunks} chunks are more than this store takes: {self.max_chunks}; "
                f"send larger ones, of {least} bytes or more"
            )
        return header

    def _begun(self, upload_id: str, header: Header) -> Upload | None:
        """Open the upload of that name; begin it if there is none. None where another was first."""
        folder = self.root / upload_id
        if os.path.lexists(folder):
            with contextlib.suppress(UploadNotFoundError):
                return Upload(self._state, upload_id)
            with folder_locked(self.root):
                if os.path.lexists(folder) and not _folder.is_ours(folder):
                    raise AssemblyError(f"{folder} is no upload, or its journal is damaged; take another name")
            return None
        aside = _folder.begin(self.root, upload_id, header, room=self._room, durability=self.durability)
        try:
            with folder_locked(self.root):
                if _folder.give_its_name(aside, folder, durability=self.durability):
                    return Upload(self._state, upload_id)
        finally:
            _folder.clear(aside)
        return None

    def _is_that(self, upload: Upload, wanted: Header) -> bool:
        """
        Tell whether *upload* is the one that is wanted; one that was published and is not makes room for it.

        Raises:
            UploadConflictError: It is another, on its way.
        """
        try:
            there = upload.header()
            same = there.same_work(wanted)
            if there.phase is Phase.PUBLISHED and not (same and wanted.tells_contents) and there.nonce != wanted.nonce:
                upload.abort()
                return False
        except BaseException:
            upload.close()
            raise
        if not same:
            upload.close()
            raise UploadConflictError(
                f"there is an upload {upload.upload_id!r} of {there.total_bytes} bytes in chunks of "
                f"{there.chunk_bytes}, checksum {there.checksum or 'none'}, content {there.content_id or 'not named'}; "
                "abort it, or take another name"
            )
        return True

    def _sweep_now_and_then(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = now - self._swept_at >= _SWEEP_SECONDS
            if due:
                self._swept_at = now
        if due:
            with contextlib.suppress(OSError):
                self.remove_stale()

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()


def _checksum(text: str | None) -> str:
    if text is None:
        return ""
    expected = parse_checksum(text)
    if expected.digest is None:
        raise ValueError(f"checksum={text!r} names no digest; write '{text}:HEX'")
    return str(expected)


def _content(text: str | None) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TypeError(f"content_id is text, got {text!r}")
    if not 0 < len(text.encode("utf-8", "surrogateescape")) <= _MOST_ID_BYTES:
        raise ValueError(f"content_id is text of 1 to {_MOST_ID_BYTES} bytes, got {len(text)} characters")
    return text


def _nonce() -> int:
    return 1 + secrets.randbits(63)


def _age(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, got {value!r}")
    if not value >= 0 or math.isnan(value):
        raise ValueError(f"{name} is a number of seconds, 0 or more; got {value!r}")
    return float(value)


def _boot() -> str:
    """Return what tells this boot of the machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil  # noqa: PLC0415 - loads only where it is needed

        return f"{psutil.boot_time():.0f}"
