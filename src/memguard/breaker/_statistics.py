"""
What a breaker counts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerStatistics:
    """
    Counts since the breaker was made.

    Attributes:
        reserved_bytes: Held reserved now.
        waiting: Callers in line now.
        admitted: Reservations admitted.
        refused: Checks and reservations refused; in observe mode those that would have been.
        opened: How often the circuit opened.
        stuck: How often it was found stuck: open for half a minute while nothing was reserved and nothing changed.
        readings: Readings taken.
        relief_runs: How often relief ran.
        relief_freed_bytes: What it gave back in all.
        overruns: How often calls of guarded functions were seen to take clearly more than they had reserved.
    """

    reserved_bytes: int
    waiting: int
    admitted: int
    refused: int
    opened: int
    stuck: int
    readings: int
    relief_runs: int
    relief_freed_bytes: int
    overruns: int = 0
