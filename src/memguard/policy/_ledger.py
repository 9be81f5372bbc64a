"""
The bytes that callers hold reserved, and whether more fit.

A reading tells what is in use, not how much of that belongs to reservations: a job may have allocated all of its bytes
or none. So two sums are kept, and the larger one counts:

* what the last reading saw, plus what was reserved since (nothing of it can be in the reading);
* the floor (what is in use without any reservation), plus all that is reserved.

The floor is not known while somebody holds bytes, but it lies between ``used - reserved`` and ``used``; each reading
narrows it to that. So bytes allocated under a reservation are counted once, and growth outside of one is not missed.
"""

from __future__ import annotations


class Ledger:
    """Sums of reserved bytes. Not thread-safe: whoever holds it holds a lock."""

    __slots__ = ("_floor_bytes", "_young_bytes", "booked_bytes", "reserved_bytes")

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self.booked_bytes = 0
        """All that was ever booked: taken before a reading begins, it tells what came after."""
        self._young_bytes = 0
        self._floor_bytes = 0

    def observe(self, used_bytes: int, booked_bytes: int | None = None) -> None:
        """
        Take in a reading.

        Args:
            used_bytes: What it saw.
            booked_bytes: :attr:`booked_bytes` when it began; what was booked since cannot be in it.
        """
        since = 0 if booked_bytes is None else self.booked_bytes - booked_bytes
        self._young_bytes = min(since, self.reserved_bytes)
        self._floor_bytes = min(used_bytes, max(self._floor_bytes, used_bytes - self.reserved_bytes))
        if self.reserved_bytes == 0:
            self._floor_bytes = used_bytes

    def counted_bytes(self, used_bytes: int) -> int:
        """Return what counts as taken when the last reading saw *used_bytes*."""
        return max(used_bytes + self._young_bytes, self._floor_bytes + self.reserved_bytes)

    def fits(self, nbytes: int, used_bytes: int, line_bytes: int) -> bool:
        """Tell whether *nbytes* more stay at or below *line_bytes*."""
        room_bytes = line_bytes - nbytes
        return used_bytes + self._young_bytes <= room_bytes and self._floor_bytes + self.reserved_bytes <= room_bytes

    def book(self, nbytes: int) -> None:
        """Count *nbytes* as reserved."""
        self.reserved_bytes += nbytes
        self.booked_bytes += nbytes
        self._young_bytes += nbytes

    def free(self, nbytes: int) -> None:
        """Count *nbytes* as no longer reserved."""
        assert 0 <= nbytes <= self.reserved_bytes, f"{nbytes} of {self.reserved_bytes} bytes given back"
        self.reserved_bytes -= nbytes
        if self._young_bytes > self.reserved_bytes:  # noqa: PLR1730 - a call of min() is a tenth of a reservation
            self._young_bytes = self.reserved_bytes
