"""
The data of an upload, as a file that is open as long as somebody needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from memguard.files._caching import PageDropper
from memguard.files._handles import Handle

DATA = "data"


class DataFile:
    """
    The data in *folder*.

    Args:
        folder: Of the upload.
        drops: Whether to keep the page cache low.
    """

    def __init__(self, folder: Path, *, drops: bool) -> None:
        self.path = folder / DATA
        self._drops = drops
        self._handle: Handle | None = None
        self._dropper: PageDropper | None = None

    @property
    def dropper(self) -> PageDropper | None:
        """What keeps the page cache low, where that is wanted."""
        return self._dropper

    def open(self) -> bool:
        """Open it; tell whether it is there."""
        try:
            handle = Handle(self.path)
        except FileNotFoundError:
            return False
        self._handle = handle
        if self._drops:
            with handle.borrowed() as number:
                self._dropper = PageDropper(number)
        return True

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[int]:
        """
        Have it open, again if it was closed to be published; yield its descriptor.

        Raises:
            FileNotFoundError: It is not there.
        """
        handle = self._handle
        if handle is None or handle.closed:
            self._handle = handle = Handle(self.path)
        with handle.borrowed() as number:
            yield number

    def close(self) -> None:
        """Let go of it."""
        if self._handle is not None:
            self._handle.close()
