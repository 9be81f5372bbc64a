"""
How long a reading stays good.
"""

from __future__ import annotations

ASSUMED_GROWTH_BYTES_PER_SECOND = 4 * 1024**3
"""
A process may fill memory at this rate: one thread was seen to touch 2 GiB/s. With 1 GiB/s assumed, one of 20 bursts
from half of 256 MiB was killed before it was refused.
"""

SHORTEST_SECONDS = 0.005


def reading_interval(headroom_bytes: int, check_interval: float) -> float:
    """
    Return the seconds after which a reading is stale.

    Half the time in which the fastest growth would eat the headroom, at most *check_interval*, at least 5 ms: with
    128 MiB left a reading is good for 16 ms, with 8 GiB for a second.
    """
    fill_seconds = headroom_bytes / (2 * ASSUMED_GROWTH_BYTES_PER_SECOND)
    return min(check_interval, max(SHORTEST_SECONDS, fill_seconds))
