"""
Turns a reading into a level.

Every change of level is decided in :func:`next_level`, and only there. It rises at once and falls late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from memguard.units import Threshold, format_bytes, parse_threshold
from memguard.values import Level

_HIGHEST_FRACTION = 0.95
"""Where an absolute line acts at the latest: what is left pays for one reading's worth of growth."""


class LineBytes(NamedTuple):
    """
    The lines at one limit, in bytes.

    Attributes:
        limit: The limit itself.
        capped: Whether an absolute line lay above 95 % of the limit and acts there.
    """

    warn: int
    close: int
    open: int
    limit: int
    capped: bool

    def highest(self) -> int:
        """Return what may be reached at most where kept memory turns out not to be taken again: 7/8 of the limit."""
        return max(self.open, self.limit * 7 // 8)

    def load_bytes(self, used_bytes: int, kept_bytes: int) -> int:
        """
        Return what to hold against the lines where the allocator keeps *kept_bytes* of *used_bytes* free.

        That is room, up to the highest line: above it all that is used counts.
        """
        return max(0, used_bytes - min(kept_bytes, self.highest() - self.open))

    def above(self, used_bytes: int) -> LineBytes:
        """Return the lines of a process that keeps *used_bytes* whatever it does: halfway from there to 95 %."""
        room = int(self.limit * _HIGHEST_FRACTION) - used_bytes
        return self._replace(close=used_bytes + room * 3 // 8, open=used_bytes + room // 2)


@dataclass(frozen=True, slots=True)
class Lines:
    """
    Where to warn, to close again and to open: fractions of the limit (float) or bytes (int).
    """

    open_at: float | int
    close_at: float | int
    warn_at: float | int

    @classmethod
    def of(cls, open_at: Threshold, close_at: Threshold | None = None, warn_at: Threshold | None = None) -> Lines:
        """
        Return checked lines; *close_at* and *warn_at* follow *open_at* (15/16 and 7/8 of it) where None.

        Raises:
            TypeError: A line is neither a number nor text.
            ValueError: A line cannot be meant, or they are out of order.
        """
        top = parse_threshold(open_at)
        close = _follow(top, 15 / 16) if close_at is None else parse_threshold(close_at)
        warn = _follow(top, 14 / 16) if warn_at is None else parse_threshold(warn_at)
        if warn_at is None and type(warn) is type(close):
            warn = min(warn, close)
        for low, high, words in ((warn, close, "warn_at <= close_at"), (close, top, "close_at < open_at")):
            # A fraction and a size can be compared only once the limit is known.
            if type(low) is type(high) and (low > high or (high is top and low == high)):
                raise ValueError(f"need {words}, got warn_at={warn!r}, close_at={close!r}, open_at={top!r}")
        return cls(top, close, warn)

    def at(self, limit_bytes: int) -> LineBytes:
        """Return the lines in bytes where the limit is *limit_bytes*."""
        cap = int(limit_bytes * _HIGHEST_FRACTION)
        top, capped = _in_bytes(self.open_at, limit_bytes, cap)
        close, _ = _in_bytes(self.close_at, limit_bytes, cap)
        if close >= top:
            close = top * 15 // 16
        warn, _ = _in_bytes(self.warn_at, limit_bytes, cap)
        return LineBytes(min(warn, close), close, top, limit_bytes, capped)

    def describe(self) -> str:
        """Return the lines for people."""
        names = (("warns at", self.warn_at), ("opens at", self.open_at), ("closes below", self.close_at))
        return ", ".join(f"{name} {_shown(line)}" for name, line in names)


def next_level(level: Level, used_bytes: int, lines: LineBytes) -> Level:
    """Return the level that follows *level* when *used_bytes* are in use."""
    if used_bytes >= lines.open:
        return Level.CRITICAL
    if used_bytes >= lines.close:
        return max(level, Level.WARNING)
    if used_bytes >= lines.warn:
        return Level.WARNING
    return Level.NORMAL


def _follow(line: float, part: float) -> float | int:
    return int(line * part) if isinstance(line, int) else line * part


def _in_bytes(line: float, limit_bytes: int, cap_bytes: int) -> tuple[int, bool]:
    if isinstance(line, int):
        return min(line, cap_bytes), line > cap_bytes
    return int(line * limit_bytes), False


def _shown(line: float) -> str:
    return format_bytes(line) if isinstance(line, int) else f"{line * 100:.3g} %"
