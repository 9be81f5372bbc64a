"""
Taking items from an iterable so that none is lost: what came before an error is handed out before the error.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from itertools import islice
from types import FrameType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def without_own_frames(error: BaseException) -> BaseException:
    """Return *error* with what its traceback has beyond this package: frames of ours would keep items alive."""
    traceback: Any = error.__traceback__
    while traceback is not None and _is_ours(traceback.tb_frame):
        traceback = traceback.tb_next
    return error.with_traceback(traceback)


def clear_own_frames(error: BaseException) -> None:
    """Empty the frames of this package that called what raised *error*; from Python 3.12 on it leads to them, too."""
    if error.__traceback__ is None:
        return
    frame = error.__traceback__.tb_frame.f_back
    try:
        while frame is not None and _is_ours(frame):
            frame.clear()
            frame = frame.f_back
    except RuntimeError:  # from here on they run
        pass
    finally:
        del frame


def _is_ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__package__") == __package__


class Reader(Generic[T]):
    """
    Reads one iterable, in order, into lists of others.

    Attributes:
        ended: Nothing more comes, be it the end or an error.
        error: What ended it, until it is raised; whoever holds items shall hand them out first.

    Raises:
        TypeError: It is no iterable, or an async one.
    """

    def __init__(self, items: Iterable[T]) -> None:
        if isinstance(items, AsyncIterable) and not isinstance(items, Iterable):
            raise TypeError(f"items is an iterable, not an async one; got {items!r}")
        self._iterator: Iterator[T] = iter(items)
        self.ours = self._iterator is not items
        self.ended = False
        self.error: BaseException | None = None

    def draw(self, into: list[T], wanted: int) -> int:
        """Append up to *wanted* items to *into*; return how many came. Fewer come at the end or before an error."""
        if self.ended:
            return 0
        before = len(into)
        try:
            # Extends item by item: what came before an error stays. A new list would be lost with it.
            into.extend(islice(self._iterator, wanted))
        except BaseException as error:
            self.failed(error)
        taken = len(into) - before
        if taken < wanted:
            self.ended = True
        return taken

    def feed(self, fill: Callable[[Iterator[T], int | None], bool], most: int | None = None) -> None:
        """
        Let *fill* take up to *most* items; an error of it counts as one of the source.

        Args:
            fill: Takes items from an iterator, so many at most, and tells whether more may follow.
            most: How many; all that come if None.
        """
        if self.ended:
            return
        try:
            self.ended = not fill(self._iterator, most)
        except BaseException as error:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Keep *error* until what was taken is handed out."""
        self.ended = True
        self.error = without_own_frames(error)

    def raise_error(self) -> None:
        """Raise what ended the source, if it was an error, and forget it."""
        error, self.error = self.error, None
        try:
            if error is not None:
                clear_own_frames(error)
                raise error
        finally:
            # The traceback holds this frame: a frame that holds the error would make a circle.
            del error

    def close(self, *, theirs: bool = False) -> None:
        """
        Let go of the source, and close it where it is ours: made here from an iterable that is no iterator.

        Args:
            theirs: Close a generator that was passed, too.
        """
        iterator, self._iterator = self._iterator, iter(())
        self.ended = True
        if self.ours or (theirs and inspect.isgenerator(iterator)):
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
