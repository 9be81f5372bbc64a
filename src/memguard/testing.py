"""
What tests need to stand in for the world: a clock that is set by hand, a sampler that follows a script.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from memguard.sampling import Sampler
from memguard.values import MemoryUsage


class FakeClock:
    """A monotonic clock that moves only when told: ``clock.advance(1.5)``."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock by *seconds*; never back."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock does not go back, got {seconds}")
        self.now += seconds


class ScriptedSampler:
    """
    A sampler that plays *readings* one by one and stays at the last.

    Args:
        readings: Fractions of *limit_bytes* as floats, used bytes as ints, or whole :class:`MemoryUsage` values.
        limit_bytes: The limit that the readings report.
        clock: Where their time comes from.
    """

    def __init__(
        self,
        readings: Iterable[float | int | MemoryUsage],
        *,
        limit_bytes: int = 1024**3,
        clock: FakeClock | None = None,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._clock = clock or FakeClock()
        self._readings = list(readings)
        if not self._readings:
            raise ValueError("a script needs at least one reading")
        self.calls = 0

    def __call__(self) -> MemoryUsage:
        """Return the next reading."""
        reading = self._readings[min(self.calls, len(self._readings) - 1)]
        self.calls += 1
        at = self._clock()
        if isinstance(reading, MemoryUsage):
            return replace(reading, at=at)
        used = round(reading * self._limit_bytes) if isinstance(reading, float) else reading
        return MemoryUsage(used, used, used, self._limit_bytes, "scripted", at)

    def then(self, *readings: float | MemoryUsage) -> None:
        """Go on with *readings* from the next call."""
        self._readings = list(readings)
        self.calls = 0


def check_sampler(sampler: Sampler) -> None:
    """Assert what every sampler promises. Call it on your own, too."""
    first, second = sampler(), sampler()
    assert first.rss_bytes >= first.anon_bytes >= 0
    assert first.used_bytes >= 0
    assert first.limit_bytes > 0
    assert first.source
    assert first.at <= second.at
