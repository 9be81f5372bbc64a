"""
How long a reading stays good.
"""

from __future__ import annotations

ASSUMED_GROWTH_BYTES_PER_SECOND = 1024**3
"""A process fills memory at about this rate when it means to; slower guesses missed real bursts."""

SHORTEST_SECONDS = 0.01


def reading_interval(headroom_bytes: int, check_interval: float) -> float:
    """
    Return the seconds after which a reading is stale.

    Half the time in which the fastest growth would eat the headroom, at most *check_interval*, at least 10 ms: with
    128 MiB left a reading is good for 62 ms, with 2 GiB for a second.
    """
    fill_seconds = headroom_bytes / (2 * ASSUMED_GROWTH_BYTES_PER_SECOND)
    return min(check_interval, max(SHORTEST_SECONDS, fill_seconds))
