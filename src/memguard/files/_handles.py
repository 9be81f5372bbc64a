"""
Open files that several threads use, each closed once nobody does.

A descriptor's number names another file as soon as it is closed and the next one is opened. So whoever reads or writes
borrows the file for as long as that takes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from memguard.files._locks import OPEN
from memguard.forking import forget_in_child


class Handle:
    """
    A file, open for reading and writing.

    Args:
        path: The file.
        at_end: Called with its descriptor right before that is closed, in the process that opened it.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, at_end: Callable[[int], object] = lambda number: None) -> None:  # noqa: ARG005
        self._lock = threading.RLock()
        self._users = 0
        self._closed = False
        self._at_end = at_end
        self._process = os.getpid()
        self._number = -1
        forget_in_child(self)
        self._number = os.open(path, OPEN)

    @property
    def closed(self) -> bool:
        """Whether it was closed: whoever has borrowed it still has it open."""
        return self._closed

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[int]:
        """
        Have it open; yield its descriptor.

        Raises:
            ValueError: It was closed.
        """
        with self._lock:
            closed = self._closed
            if not closed:
                self._users += 1
        if closed:
            raise ValueError("the file is closed")
        try:
            yield self._number
        finally:
            with self._lock:
                self._users -= 1
            self._end_if_unused()

    def close(self) -> None:
        """Close it as soon as nobody has borrowed it; a second call does nothing."""
        with self._lock:
            self._closed = True
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        number = -1
        with self._lock:
            if self._closed and self._users <= 0:
                number = self._number
                self._number = -1
        if number >= 0:
            try:
                if os.getpid() == self._process:
                    self._at_end(number)
            finally:
                os.close(number)

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()
        self._users = 0

    def __del__(self) -> None:
        # Nobody borrows what nobody knows: an exception of a signal handler may have kept one from giving it back.
        self._closed, self._users = True, 0
        self._end_if_unused()
