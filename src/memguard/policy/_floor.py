"""
What is in use without any reservation, and what reservations leave of the room.

A reading tells what is in use, not how much of that belongs to reservations: a job may have allocated all of its bytes
or none. So two sums are kept, and the larger one counts:

* what the last reading saw, plus what was reserved since (nothing of it can be in the reading);
* the floor (what is in use without any reservation), plus all that is reserved.

The floor is not known while somebody holds bytes, but it lies between ``used - reserved`` and ``used``; each reading
narrows it to that. So bytes allocated under a reservation are counted once, and growth outside of one is not missed.

What ended jobs left behind, freed but kept by the allocator, looks as if it belonged to those that run, and would make
room for more before these have taken theirs. So where the allocator tells how much it keeps, its growth raises the
floor.
"""

from __future__ import annotations

from typing import NamedTuple

from memguard.policy._lines import LineBytes


class Floor(NamedTuple):
    """
    What is known of it.

    Attributes:
        nbytes: The floor.
        seen_bytes: What the readings narrow it to.
        base_bytes: What was in use when nobody held any, as seen last.
        base_kept_bytes: What the allocator kept of that.
    """

    nbytes: int = 0
    seen_bytes: int = 0
    base_bytes: int = 0
    base_kept_bytes: int = 0


def next_floor(floor: Floor, used_bytes: int, kept_bytes: int, reserved_bytes: int, *, quiet: bool) -> Floor:
    """
    Return what is known after a reading.

    Args:
        floor: What was known before.
        used_bytes: What the reading saw.
        kept_bytes: What of it the allocator keeps without use.
        reserved_bytes: What callers hold.
        quiet: Whether nothing was booked or given back while it was taken.
    """
    if reserved_bytes == 0 and quiet:
        return Floor(used_bytes, used_bytes, used_bytes, kept_bytes)
    seen = min(used_bytes, max(floor.seen_bytes, used_bytes - reserved_bytes))
    by_allocator = floor.base_bytes + kept_bytes - floor.base_kept_bytes
    return floor._replace(nbytes=min(used_bytes, max(seen, by_allocator)), seen_bytes=seen)


def top_bytes(lines: LineBytes, kept_bytes: int) -> int:
    """
    Return how far use and reservations may go together.

    What the allocator keeps may be taken again before anything new: without it, they shall stay below the threshold;
    and at or below the highest one even if none of it is.
    """
    return max(lines.open, min(lines.open + kept_bytes, lines.highest()))
