"""
Peaks that were noted one after the other, asked for the highest since some moment.

Of two notes the earlier and lower one answers nothing any more; so what is kept falls from old to new, and a question
walks over few. It is one chain that never changes: a note makes a new head, and takes its place if nothing came
between. So nobody waits here, and whatever interrupts an addition finds the notes whole.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_FEW = 64


@dataclass(frozen=True, slots=True)
class _Note:
    ticket: int
    peak_bytes: int
    older: _Note | None
    length: int


def _chain(notes: Iterable[tuple[int, int]], older: _Note | None) -> _Note | None:
    """Return *notes*, which come from old to new, on top of *older*."""
    head = older
    for ticket, peak in notes:
        head = _Note(ticket, peak, head, 1 if head is None else head.length + 1)
    return head


def _with(head: _Note | None, ticket: int, peak_bytes: int) -> _Note | None:
    """Return the chain of *head* with one more note, which may come late."""
    newer: list[tuple[int, int]] = []
    while head is not None and head.ticket > ticket:
        if head.peak_bytes >= peak_bytes:
            return _chain(reversed(newer), head)  # whoever asks for this one is told of that one
        newer.append((head.ticket, head.peak_bytes))
        head = head.older
    while head is not None and head.peak_bytes <= peak_bytes:
        head = head.older
    return _chain([(ticket, peak_bytes), *reversed(newer)], head)


def _needed(head: _Note | None, since: Sequence[int]) -> _Note | None:
    """Return the chain without those notes that answer none of the questions *since*, which are in order."""
    kept = []
    while head is not None:
        after = 0 if head.older is None else head.older.ticket
        if bisect_right(since, head.ticket) > bisect_right(since, after):
            kept.append((head.ticket, head.peak_bytes))
        head = head.older
    return _chain(reversed(kept), None)


class Notes:
    """What was noted. Safe in threads, finalizers and signal handlers."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._head: _Note | None = None

    def add(self, ticket: int, peak_bytes: int, asking: int, since: Callable[[], Sequence[int]]) -> None:
        """
        Note *peak_bytes*.

        Args:
            ticket: When that was; tickets grow.
            peak_bytes: The peak.
            asking: How many may ask.
            since: Returns the tickets from which on they may, in order; asked where there are more notes than answers.
        """
        added = False
        while not added:
            before = self._head
            after = _with(before, ticket, peak_bytes)
            if after is not None and after.length > _FEW + 2 * asking:
                after = _needed(after, since())
            with self._lock:
                if self._head is before:
                    self._head = after
                    added = True

    def highest(self, since: int) -> int:
        """Return the highest peak that was noted with a ticket of *since* or later; 0 if there is none."""
        highest, note = 0, self._head
        while note is not None and note.ticket >= since:
            highest, note = note.peak_bytes, note.older
        return highest

    def clear(self) -> None:
        """Forget all: nobody may ask."""
        self._head = None

    def forget_threads(self) -> None:
        """Begin anew without the threads of a parent; what was noted stays."""
        self._lock = threading.RLock()
