"""
The bytes that callers hold reserved, and whether more fit.

A reading tells what is in use, not how much of that belongs to reservations: a job may have allocated all of its bytes
or none. So two sums are kept, and the larger one counts:

* what the last reading saw, plus what was reserved since (nothing of it can be in the reading);
* the floor (what is in use without any reservation), plus all that is reserved.

The floor is not known while somebody holds bytes, but it lies between ``used - reserved`` and ``used``; each reading
narrows it to that. So bytes allocated under a reservation are counted once, and growth outside of one is not missed.

What ended jobs left behind, freed but kept by the allocator, looks as if it belonged to those that run, and would make
room for more before these have taken theirs. So where the allocator tells how much it keeps, its growth raises the
floor.

What was given back may be in use still: it counts until a reading that began later. And a job that gave its bytes
back has often not freed them yet: they are freed when its function returns, and beside many threads that takes a
while. So its bytes may linger: they count until its thread asks for the next or ends, or for a while.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Thread(Protocol):
    """What the ledger wants to know of one."""

    def is_alive(self) -> bool:
        """Tell whether it has not ended."""
        ...


class Mark(NamedTuple):
    """
    How far a ledger was when a reading began.

    Attributes:
        booked_bytes: All that was ever booked.
        freed_bytes: All that was ever given back, without what lingers.
        changes: How often either happened.
    """

    booked_bytes: int
    freed_bytes: int
    changes: int


class Ledger:
    """Sums of reserved bytes. Not thread-safe: whoever holds it holds a lock."""

    __slots__ = (
        "_base",
        "_booked_bytes",
        "_changes",
        "_ended_bytes",
        "_floor_bytes",
        "_freed_bytes",
        "_kept_bytes",
        "_lingering",
        "_lingering_bytes",
        "_seen_floor_bytes",
        "_young_bytes",
        "reserved_bytes",
    )

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self._booked_bytes = 0
        self._freed_bytes = 0
        self._changes = 0
        self._young_bytes = 0
        self._ended_bytes = 0
        self._kept_bytes = 0
        self._seen_floor_bytes = 0
        self._floor_bytes = 0
        self._lingering: dict[Thread, tuple[float, int]] = {}
        self._lingering_bytes = 0
        self._base = (0, 0)  # used and kept bytes, when nobody held any

    def mark(self) -> Mark:
        """Return how far it is: taken before a reading begins, it tells what came after."""
        return Mark(self._booked_bytes, self._freed_bytes, self._changes)

    def observe(self, used_bytes: int, began: Mark | None = None, kept_bytes: int = 0) -> None:
        """
        Take in a reading.

        Args:
            used_bytes: What it saw.
            began: What :meth:`mark` said when it began: what was booked since need not be in it, and what was given
                back since may be. None where nothing was.
            kept_bytes: What of it the allocator keeps without use.
        """
        began = began or self.mark()
        self._kept_bytes = kept_bytes
        self._young_bytes = min(self._booked_bytes - began.booked_bytes, self.reserved_bytes)
        self._ended_bytes = self._freed_bytes - began.freed_bytes
        if self.reserved_bytes == 0 and began.changes == self._changes:
            # Nothing is left to tell apart: what lingers is in use, or gone.
            self._lingering.clear()
            self._lingering_bytes = 0
            self._base = used_bytes, kept_bytes
            self._seen_floor_bytes = self._floor_bytes = used_bytes
            return
        self._seen_floor_bytes = min(used_bytes, max(self._seen_floor_bytes, used_bytes - self.reserved_bytes))
        base_bytes, base_kept_bytes = self._base
        self._floor_bytes = min(used_bytes, max(self._seen_floor_bytes, base_bytes + kept_bytes - base_kept_bytes))

    def counted_bytes(self, used_bytes: int) -> int:
        """Return what counts as taken when the last reading saw *used_bytes*."""
        return max(used_bytes + self._young_bytes, self._told_bytes())

    def _told_bytes(self) -> int:
        return self._floor_bytes + self.reserved_bytes + self._ended_bytes + self._lingering_bytes

    def fits(self, nbytes: int, used_bytes: int, line_bytes: int, highest_bytes: int = 0) -> bool:
        """
        Tell whether *nbytes* more stay at or below *line_bytes*.

        What the allocator keeps may be taken again before anything new: without it, they shall stay below the line;
        and at or below *highest_bytes* even if none of it is.
        """
        if self._fits(nbytes, used_bytes, line_bytes):
            return True
        kept = self._kept_bytes
        return kept > 0 and self._fits(nbytes, used_bytes, min(line_bytes + kept, highest_bytes))

    def _fits(self, nbytes: int, used_bytes: int, line_bytes: int) -> bool:
        room_bytes = line_bytes - nbytes
        return used_bytes + self._young_bytes <= room_bytes and self._told_bytes() <= room_bytes

    def book(self, nbytes: int) -> None:
        """Count *nbytes* as reserved."""
        self.reserved_bytes += nbytes
        self._booked_bytes += nbytes
        self._changes += 1
        self._young_bytes += nbytes

    def linger(self, nbytes: int, thread: Thread, until: float) -> None:
        """Go on counting *nbytes* that *thread* gave back just now, up to a reading that begins at *until* or later."""
        self._ended_bytes -= nbytes
        self._freed_bytes -= nbytes
        self.gone(thread)
        self._lingering[thread] = until, nbytes
        self._lingering_bytes += nbytes

    def gone(self, thread: Thread) -> None:
        """*thread* has gone on to something else: what lingers of it counts as given back just now."""
        if self._lingering:
            nbytes = self._drop(thread)
            self._ended_bytes += nbytes
            self._freed_bytes += nbytes

    def settle(self, began_at: float) -> None:
        """Count what lingers no longer, as far as the reading that began at *began_at* sees what became of it."""
        for thread, (until, _) in list(self._lingering.items()):
            if until <= began_at:
                self._drop(thread)
            elif not thread.is_alive():
                self.gone(thread)

    def _drop(self, thread: Thread) -> int:
        _, nbytes = self._lingering.pop(thread, (0.0, 0))
        self._lingering_bytes -= nbytes
        return nbytes

    def free(self, nbytes: int) -> None:
        """Count *nbytes* as no longer reserved."""
        assert 0 <= nbytes <= self.reserved_bytes, f"{nbytes} of {self.reserved_bytes} bytes given back"
        self.reserved_bytes -= nbytes
        self._freed_bytes += nbytes
        self._changes += 1
        self._ended_bytes += nbytes
        if self._young_bytes > self.reserved_bytes:  # noqa: PLR1730 - a call of min() is a tenth of a reservation
            self._young_bytes = self.reserved_bytes
