"""
A folder of uploads.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from memguard.errors import AssemblyError, InsufficientDiskError, UploadConflictError
from memguard.files._assemble import StrPath
from memguard.files._caching import in_container
from memguard.files._checksums import parse_checksum
from memguard.files._copying import read_at, write_all
from memguard.files._journal import HEADER_BYTES, MOST_CHUNK_BYTES, RECORD_BYTES, Header, Phase
from memguard.files._journal_file import JOURNAL
from memguard.files._locks import OPEN, claim
from memguard.files._names import check_name
from memguard.files._prefix import Prefix
from memguard.files._publishing import RENAMES_OPEN_FILES, hidden_name
from memguard.files._slots import Slots, in_thread
from memguard.files._upload import DATA, Upload
from memguard.units import ByteSize, parse_bytes
from memguard.values import Gate

Durability: TypeAlias = Literal["publish", "chunk", "none"]
PageCache: TypeAlias = Literal["auto", "keep", "drop"]
_LEFTOVERS = (".memguard-new", ".memguard-gone")
_SWEEP_SECONDS = 300.0
_MOST_PREFIXES = 256


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
        self._max_age = _age(max_age, "max_age")
        self._max_bytes = None if max_upload_bytes is None else parse_bytes(max_upload_bytes)
        self._min_free_bytes = parse_bytes(min_free_bytes)
        self._reserves = bool(reserve_space)
        self.durability: Durability = durability
        self._drops = page_cache == "drop" or (page_cache == "auto" and in_container())
        self.breaker = breaker
        self.boot = _boot()
        self._slots = Slots(concurrency)
        self._prefixes: OrderedDict[str, Prefix] = OrderedDict()
        self._lock = threading.Lock()
        self._swept_at = time.monotonic()
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - a link stays what it is
        self.root.mkdir(parents=True, exist_ok=True)

    # ----- uploads

    def create(
        self, upload_id: str, *, total_bytes: ByteSize, chunk_bytes: ByteSize, checksum: str | None = None
    ) -> Upload:
        """
        Begin an upload; the same again, with the same sizes, opens it.

        Args:
            upload_id: Its name: letters, digits, ``.``, ``_`` and ``-``.
            total_bytes: The whole.
            chunk_bytes: Each chunk but the last.
            checksum: What the whole must have, ``"sha256:HEX"`` or ``"crc32:HEX"``.

        Raises:
            AssemblyError: It is larger than the store takes.
            InsufficientDiskError: The disk has no room for it.
            UnsafeNameError: The name is not safe.
            UploadConflictError: There is one of that name with other sizes or another checksum.
            ValueError: A size or the checksum cannot be meant.
        """
        folder = self.root / check_name(upload_id)
        header = self._wanted(total_bytes, chunk_bytes, checksum)
        self._sweep_now_and_then()
        if not folder.exists():
            self._begin(folder, header)
        upload = Upload(self, upload_id, folder)
        there = upload._journal.header()
        same = (there.total_bytes, there.chunk_bytes, there.checksum) == (
            header.total_bytes,
            header.chunk_bytes,
            header.checksum,
        )
        if not same:
            upload.close()
            raise UploadConflictError(
                f"there is an upload {upload_id!r} of {there.total_bytes} bytes in chunks of {there.chunk_bytes}, "
                f"checksum {there.checksum or 'none'}; abort it, or take another name"
            )
        return upload

    async def acreate(
        self, upload_id: str, *, total_bytes: ByteSize, chunk_bytes: ByteSize, checksum: str | None = None
    ) -> Upload:
        """Begin an upload as :meth:`create` does, without blocking the event loop."""
        return await in_thread(
            self.create, upload_id, total_bytes=total_bytes, chunk_bytes=chunk_bytes, checksum=checksum
        )

    def open(self, upload_id: str) -> Upload:
        """
        Open an upload that was begun, by this process or another, before a crash or after.

        Raises:
            UnsafeNameError: The name is not safe.
            UploadNotFoundError: There is none.
        """
        return Upload(self, upload_id, self.root / check_name(upload_id))

    def uploads(self) -> tuple[str, ...]:
        """Return the names of the uploads there are, published ones included until they are stale."""
        return tuple(sorted(path.parent.name for path in self.root.glob(f"[!.]*/{JOURNAL}")))

    def statistics(self) -> UploadStatistics:
        """Return how many chunks are being written, and how many wait."""
        return UploadStatistics(self._slots.active, self._slots.waiting)

    def remove_stale(self, older_than: float | None = None) -> tuple[str, ...]:
        """
        Remove uploads that nobody has open and that have had no chunk for long; return their names.

        Args:
            older_than: Seconds; *max_age* if None.
        """
        age = self._max_age if older_than is None else _age(older_than, "older_than")
        # Times of files are those of the wall: they have to be understood by other processes, after a reboot.
        before = time.time() - age
        removed = []
        for folder in sorted(self.root.iterdir()):
            if folder.name.endswith(_LEFTOVERS):
                if _changed_at(folder) <= before:
                    shutil.rmtree(folder, ignore_errors=True)
            elif self._is_stale(folder, before) and self._remove_unless_live(folder):
                removed.append(folder.name)
        return tuple(removed)

    # ----- inside

    def _wanted(self, total_bytes: ByteSize, chunk_bytes: ByteSize, checksum: str | None) -> Header:
        total, chunk = parse_bytes(total_bytes), parse_bytes(chunk_bytes)
        if not 1 <= chunk <= MOST_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is 1 byte to 4 GiB, got {chunk_bytes!r}")
        if self._max_bytes is not None and total > self._max_bytes:
            raise AssemblyError(f"an upload of {total} bytes is larger than this store takes: {self._max_bytes} bytes")
        text = ""
        if checksum is not None:
            expected = parse_checksum(checksum)
            if expected.digest is None:
                raise ValueError(f"checksum={checksum!r} names no digest; write '{checksum}:HEX'")
            text = str(expected)
        return Header(total, chunk, text, self.boot)

    def _begin(self, folder: Path, header: Header) -> None:
        """Make the folder aside, and give it its name in one step."""
        aside = self.root / f".{folder.name}.{secrets.token_hex(4)}.memguard-new"
        aside.mkdir()
        try:
            with (aside / DATA).open("wb") as data:
                self._reserve(data.fileno(), header.total_bytes)
            with (aside / JOURNAL).open("wb") as journal:
                write_all(journal.fileno(), header.pack(), 0)
                journal.truncate(HEADER_BYTES + header.chunks * RECORD_BYTES)
                if self.durability != "none":
                    os.fsync(journal.fileno())
            aside.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another was first: theirs it is.
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _reserve(self, number: int, nbytes: int) -> None:
        if hasattr(os, "statvfs"):
            disk = os.fstatvfs(number)
            free = max(0, disk.f_bavail * disk.f_frsize - self._min_free_bytes)
            if nbytes > free:
                raise InsufficientDiskError(nbytes, free, str(self.root))
        if self._reserves and nbytes and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(number, 0, nbytes)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise InsufficientDiskError(nbytes, 0, str(self.root)) from error
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        os.ftruncate(number, nbytes)

    def _prefix(self, upload_id: str, header: Header) -> Prefix | None:
        """Return the running checksum of an upload; None where it can be combined from those of its chunks."""
        if not header.checksum or header.checksum.startswith("crc32:"):
            return None
        with self._lock:
            prefix = self._prefixes.get(upload_id)
            if prefix is None or str(prefix.checksum) != header.checksum:
                prefix = self._prefixes[upload_id] = Prefix(parse_checksum(header.checksum))
            self._prefixes.move_to_end(upload_id)
            while len(self._prefixes) > _MOST_PREFIXES:
                self._prefixes.popitem(last=False)
            return prefix

    def _forget_prefix(self, upload_id: str) -> None:
        with self._lock:
            self._prefixes.pop(upload_id, None)

    def _sweep_now_and_then(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._swept_at < _SWEEP_SECONDS:
                return
            self._swept_at = now
        with contextlib.suppress(OSError):
            self.remove_stale()

    @staticmethod
    def _is_stale(folder: Path, before: float) -> bool:
        return folder.is_dir() and not folder.name.startswith(".") and _changed_at(folder) <= before

    def _remove_unless_live(self, folder: Path) -> bool:
        try:
            journal = os.open(folder / JOURNAL, OPEN)
        except FileNotFoundError:
            self._remove(folder)  # no upload was ever whole here
            return True
        except OSError:
            return False
        try:
            if not claim(journal):
                return False
            header = Header.unpack(read_at(journal, HEADER_BYTES, 0))
            if header is not None and header.phase is Phase.PUBLISHING:
                with contextlib.suppress(OSError):
                    hidden_name(folder.name, Path(header.dest)).unlink()
            if RENAMES_OPEN_FILES:
                self._remove(folder)
                return True
        finally:
            os.close(journal)
        try:
            self._remove(folder)
        except PermissionError:  # somebody has it open
            return False
        return True

    def _remove(self, folder: Path) -> None:
        """Remove an upload: its name first, in one step."""
        gone = self.root / f".{folder.name}.{secrets.token_hex(4)}.memguard-gone"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _changed_at(folder: Path) -> float:
    """Return when something last changed in *folder*, in seconds of the wall's clock."""
    times = [folder.stat().st_mtime]
    for name in (DATA, JOURNAL):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


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
