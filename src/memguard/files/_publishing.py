"""
A file that appears whole under its name, or not at all.

It is written beside the name: without any name where the kernel can (O_TMPFILE), so that nothing is left even if the
process is killed; else under a hidden one. Then it is made durable, and given its name in one step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_HIDDEN = ".memguard-part"
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
RENAMES_OPEN_FILES = os.name != "nt"
"""Windows refuses to rename what anybody has open, also through another name of it."""


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], to: Path | None = None) -> Iterator[None]:
    """Have errors of calls that took descriptors name the file; or two, *path* that was to be copied *to* another."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
            if to is not None:
                error.filename2 = str(to)
        raise


class Unpublished:
    """
    A file on its way to *dest*; entered, it is open for reading and writing at :attr:`number`.

    Args:
        dest: Its name to be.
        overwrite: Whether it may take the place of another.
        durable: Whether it shall survive a crash of the machine once it is published.
        hidden: What it may be called until then, beside *dest*; so that whoever comes after a crash knows what to
            remove. Whatever is there is removed. None for a name that nobody else takes.

    Raises:
        FileExistsError: There is one, and *overwrite* is False; at entering, and at publishing again.
        OSError: The directory is missing, or nothing can be written there.
    """

    number: int

    def __init__(self, dest: Path, *, overwrite: bool, durable: bool, hidden: Path | None = None) -> None:
        self._dest = dest
        self._hidden_name = hidden or dest.parent / f".{secrets.token_hex(8)}{_HIDDEN}"
        self._overwrite = overwrite
        self._durable = durable
        self._directory: int | None = None
        self._hidden: Path | None = None
        self._is_open = False

    def __enter__(self) -> Self:
        """Open it."""
        if not self._overwrite and os.path.lexists(self._dest):
            raise FileExistsError(errno.EEXIST, "it exists; pass overwrite=True to replace it", str(self._dest))
        if self._dest.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a directory cannot be replaced by a file", str(self._dest))
        if _DIRECTORY:
            self._directory = os.open(self._dest.parent, os.O_RDONLY | _DIRECTORY | os.O_CLOEXEC)
        try:
            self._hidden_name.unlink(missing_ok=True)
            self.number = self._open()
            self._is_open = True
        except BaseException:
            self._close_directory()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it; what was not published is gone."""
        self._close()
        if self._hidden is not None:
            with contextlib.suppress(FileNotFoundError):
                self._hidden.unlink()
        self._close_directory()

    def publish(self) -> None:
        """Give it its name; on Windows it is closed before."""
        with naming(self._dest):
            if self._durable:
                os.fsync(self.number)
            if not RENAMES_OPEN_FILES:
                self._close()
            if self._overwrite:
                self._hide().replace(self._dest)
            else:
                self._name()
            if self._durable and self._directory is not None:
                os.fsync(self._directory)

    def _open(self) -> int:
        if hasattr(os, "O_TMPFILE") and self._directory is not None and Path("/proc/self/fd").is_dir():
            try:
                return os.open(self._dest.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
            except OSError as failed:
                if failed.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                    raise
        self._hidden = self._hidden_name
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return os.open(self._hidden, flags, 0o666)

    def _hide(self) -> Path:
        """Return the hidden name that it has, or gets now."""
        if self._hidden is None:
            self._link(self._hidden_name)
            self._hidden = self._hidden_name
        return self._hidden

    def _link(self, name: Path) -> None:
        # With a directory given it is linkat, which follows the link in /proc to the file without a name.
        assert self._directory is not None
        os.link(
            f"/proc/self/fd/{self.number}",
            name.name,
            src_dir_fd=self._directory,
            dst_dir_fd=self._directory,
            follow_symlinks=True,
        )

    def _name(self) -> None:
        """Give it its name unless there is one already, in one step."""
        if self._hidden is None:
            self._link(self._dest)
        elif os.name == "nt":
            self._hidden.rename(self._dest)  # refuses to replace
        else:
            os.link(self._hidden, self._dest)

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.number)

    def _close_directory(self) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None


def hidden_name(upload_id: str, nonce: int, target: Path) -> Path:
    """Return what an upload's file that is being published as *target* may be called for a moment, and no other is."""
    return target.parent / f".{upload_id}.{nonce:016x}{_HIDDEN}"


def unhide(upload_id: str, nonce: int, dest: str) -> None:
    """Remove what an attempt to publish an upload as *dest* that was cut short left beside it."""
    if dest and "://" not in dest:
        with contextlib.suppress(OSError):
            hidden_name(upload_id, nonce, Path(dest)).unlink()


def is_file(path: Path, device: int, inode: int, nbytes: int) -> bool:
    """Tell whether there is this file, and as large as that."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino, status.st_size) == (device, inode, nbytes)


def give_name(file: Path, target: Path, hidden: Path, *, overwrite: bool) -> bool:
    """
    Give *file* the name *target* as well, in one step; return False where it takes a copy.

    Raises:
        FileExistsError: There is one, and *overwrite* is False.
        OSError: It cannot be named there.
    """
    try:
        if not overwrite:
            _link_once(file, target)
            return True
        hidden.unlink(missing_ok=True)
        os.link(file, hidden)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            return False
        raise
    hidden.replace(target)
    hidden.unlink(missing_ok=True)  # where both were names of one file, nothing was replaced
    return True


def _link_once(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileExistsError:
        # By an earlier attempt, of which nobody knows any more.
        if not (target.exists() and target.samefile(file)):
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in *folder*, where that can be asked for."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(number)
    finally:
        os.close(number)
