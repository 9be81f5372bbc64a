"""
What a watcher says of a reading: how tight it is by lines of the watcher's own, and how fast memory grows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from memguard.units import Threshold, format_bytes, parse_threshold
from memguard.values import Level, MemoryUsage

_FALLS_BELOW = 15 / 16
"""A level is left this far below its line, so that a process at the line is not called twice a minute."""
_WARNS_AT = 14 / 16
_NEARLY_A_MINUTE_SECONDS = 54.0
"""Timers are late and early by a little, and marks lie some seconds apart."""
_BETWEEN_MARKS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WatchLines:
    """
    Where to warn, and what is critical.

    A share (float) is held against what is used of the limit; a size (int, bytes) against the resident size of this
    process, since a person who writes "1 GB" means the process and not the machine it runs on.
    """

    warn_at: float | int
    critical_at: float | int

    @classmethod
    def of(cls, warn_at: Threshold | None, critical_at: Threshold | None) -> WatchLines:
        """
        Return checked lines; *critical_at* is 80 % if None, *warn_at* 7/8 of it.

        Raises:
            TypeError: A line is neither a number nor text.
            ValueError: A line cannot be meant, or they are out of order.
        """
        critical = parse_threshold("80%" if critical_at is None else critical_at)
        if warn_at is None:
            return cls(int(critical * _WARNS_AT) if isinstance(critical, int) else critical * _WARNS_AT, critical)
        warn = parse_threshold(warn_at)
        # A share and a size can be compared only once the limit is known.
        if type(warn) is type(critical) and warn > critical:
            raise ValueError(f"need warn_at <= critical_at, got warn_at={warn_at!r}, critical_at={critical_at!r}")
        return cls(warn, critical)

    def level(self, before: Level, usage: MemoryUsage) -> Level:
        """Return the level that follows *before*: it rises at once and falls late."""
        for level, line in ((Level.CRITICAL, self.critical_at), (Level.WARNING, self.warn_at)):
            if _reaches(usage, line * (_FALLS_BELOW if before >= level else 1)):
                return level
        return Level.NORMAL

    def describe(self) -> str:
        """Return the lines for people."""
        return f"warns at {_shown(self.warn_at)}, critical at {_shown(self.critical_at)}"


class MinuteGrowth:
    """
    How much something grew over the last minute.

    Keeps a dozen marks, however often it is told: eight megabytes that come at once are not 480 a minute.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def observe(self, seconds: float, nbytes: int) -> float | None:
        """Return the bytes per minute that lead to *nbytes*; None while there is no minute to look back on."""
        marks = self._marks
        # The newest mark that is old enough; what lies before it is of no use any more.
        while len(marks) > 1 and seconds - marks[1][0] >= _NEARLY_A_MINUTE_SECONDS:
            marks.popleft()
        growth = None
        if marks and seconds - marks[0][0] >= _NEARLY_A_MINUTE_SECONDS:
            growth = (nbytes - marks[0][1]) * 60 / (seconds - marks[0][0])
        if not marks or seconds - marks[-1][0] >= _BETWEEN_MARKS_SECONDS:
            marks.append((seconds, nbytes))
        return growth


def _reaches(usage: MemoryUsage, line: float) -> bool:
    return usage.rss_bytes >= line if line > 1 else usage.fraction >= line


def _shown(line: float) -> str:
    return format_bytes(line) if isinstance(line, int) else f"{line * 100:.3g} %"
