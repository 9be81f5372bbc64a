"""
What leak detection says: a verdict, its figures, and what to do, in words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from memguard.units import format_bytes
from memguard.values import MemoryUsage

Verdict: TypeAlias = Literal["insufficient", "stable", "warming-up", "suspect", "leak"]
Cause: TypeAlias = Literal["python objects", "native", "mapped or fragmented"]

Reading: TypeAlias = MemoryUsage | tuple[float, int]
"""A sample as it was given: with all that is known, or seconds and bytes."""

_REMEDIES: dict[Cause | None, str] = {
    "python objects": (
        "Python objects pile up: compare two snapshots of the types (take_snapshot()), and look for caches without a "
        "bound, listeners that are never removed, tasks that never finish."
    ),
    "native": (
        "malloc's blocks pile up and small Python objects do not: look for large buffers that are kept, and for "
        "native libraries whose objects nobody closes; a native profiler shows where they come from."
    ),
    "mapped or fragmented": (
        "Neither Python objects nor malloc's blocks pile up: look for mappings and thread stacks that are never "
        "released, or try release_memory() and limit_arenas() against fragmentation."
    ),
    None: (
        "Give the detector python_blocks and malloc_in_use_bytes as well, and it names the cause; until then compare "
        "two snapshots of the types (take_snapshot())."
    ),
}

_WORTH_A_WORD = 0.25
"""So much of the resident size held free by the allocator is worth a word."""


@dataclass(frozen=True, slots=True)
class LeakDetectionResult:
    """
    What the samples say; true if they say that there is a leak.

    Attributes:
        verdict: ``"insufficient"``: too few samples to tell; ``"stable"``; ``"warming-up"``: it grows, and the growth
            fades; ``"suspect"``: it grows steadily, not long enough to be sure; ``"leak"``.
        cause: What grows, of a leak or a suspect; None where nothing grows or the signals that tell were not given.
        growth_percent: From *first_sample* to *last_sample*, in percent of the first.
        first_sample: The oldest sample that the figures go by: the :class:`MemoryUsage`, or the pair of seconds and
            bytes. None if there was no sample.
        last_sample: The newest one.
        growth_bytes_per_minute: What the process gained and kept per minute of late: the median slope of its floors.
        growth_interval: The 95 % interval around it, bytes per minute; load that comes and goes makes it too narrow.
        seconds_to_limit: Until the peaks meet the limit at this rate; None without a limit or without growth, and
            where the growth fades below the limit.
        plateau_bytes: Where fading growth leads to; None unless the verdict is ``"warming-up"``.
        reason: Why this verdict.
        recommendation: The same in plain words, with numbers and what to do.
    """

    verdict: Verdict
    cause: Cause | None
    growth_percent: float
    first_sample: Reading | None
    last_sample: Reading | None
    growth_bytes_per_minute: float
    growth_interval: tuple[float, float]
    seconds_to_limit: float | None
    plateau_bytes: int | None
    reason: str
    recommendation: str = ""

    @property
    def detected(self) -> bool:
        """Whether the verdict is ``"leak"``."""
        return self.verdict == "leak"

    def __bool__(self) -> bool:
        return self.detected


def size_of(sample: Reading) -> int:
    """Return the resident bytes of *sample*, without those that files back where that is known."""
    if not isinstance(sample, MemoryUsage):
        return sample[1]
    return sample.anon_bytes if sample.anon_bytes > 0 else sample.rss_bytes


def growth_percent(first: Reading | None, last: Reading | None) -> float:
    """Return how much larger *last* is than *first*, in percent; 0 where that has no meaning."""
    if first is None or last is None or not size_of(first):
        return 0.0
    return (size_of(last) / size_of(first) - 1) * 100


def worded(result: LeakDetectionResult, free_bytes: int | None) -> LeakDetectionResult:
    """Return *result* with its recommendation; *free_bytes* is what malloc holds free, None if unknown."""
    resident_bytes = 0 if result.last_sample is None else size_of(result.last_sample)
    return replace(result, recommendation=_advice(result, resident_bytes) + _kept_free(resident_bytes, free_bytes))


def _advice(result: LeakDetectionResult, resident_bytes: int) -> str:
    low, high = (format_bytes(round(end)) for end in result.growth_interval)
    speed = f"{format_bytes(round(result.growth_bytes_per_minute))} a minute ({low} to {high})"
    left = result.seconds_to_limit
    ahead = "" if left is None else f" The limit is {_duration(left)} away at this rate."
    if result.verdict == "insufficient":
        return "Too few samples to tell a leak from a start; go on sampling."
    if result.verdict == "leak":
        return f"Memory leaks: {speed} are gained and kept.{ahead} {_REMEDIES[result.cause]}"
    if result.verdict == "suspect":
        return (
            f"Memory grows steadily, by {speed}, not yet long enough to call it a leak.{ahead} Go on sampling; take a "
            "snapshot of the types now, so that there is one to compare with."
        )
    if result.verdict == "warming-up":
        towards = "" if result.plateau_bytes is None else f", towards {format_bytes(result.plateau_bytes)}"
        return f"Memory grows, and the growth fades{towards}: a start or a cache that fills. Nothing to do."
    return f"No lasting growth: {format_bytes(resident_bytes)} resident. Nothing to do."


def _kept_free(resident_bytes: int, free_bytes: int | None) -> str:
    if free_bytes is None or free_bytes < _WORTH_A_WORD * resident_bytes:
        return ""
    return (
        f" Freed but kept by the allocator: {format_bytes(free_bytes)} of {format_bytes(resident_bytes)}, which is no "
        "leak; release_memory() returns it, limit_arenas() keeps it from piling up."
    )


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
