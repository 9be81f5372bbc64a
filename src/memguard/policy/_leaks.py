"""
Leak detection over samples that are there already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from memguard.policy._floors import BLOCKS
from memguard.policy._leak_detector import LeakDetector
from memguard.policy._leak_result import LeakDetectionResult, Reading, growth_percent, size_of, worded
from memguard.values import MemoryUsage

_FEWEST = 3
"""Two samples are a difference, not a course."""
_LARGEST_WINDOW = 60
_PATIENT = 2 * BLOCKS
"""With fewer samples growth cannot have lasted for two windows of the smallest size."""


def detect_leak(
    samples: Sequence[MemoryUsage] | Iterable[tuple[float, int]],
    *,
    growth_threshold: float = 1.5,
    limit_bytes: int | None = None,
) -> LeakDetectionResult:
    """
    Return what *samples* say, oldest first; nothing is kept.

    The judge is :class:`LeakDetector`, with a window of a quarter of the samples, 12 to 60: growth is a leak if it
    lasts for half of them. What it cannot do with few samples, *growth_threshold* does:

    - below 12 samples (3 at least) there is a leak if the last is *growth_threshold* times the first, and else the
      verdict is ``"insufficient"``;
    - from 12 to 23 there is a leak if that holds and the growth is neither a step nor fades; without it such growth is
      ``"suspect"``;
    - from 24 on it is not used.

    Args:
        samples: :class:`MemoryUsage`, judged by ``anon_bytes`` (``rss_bytes`` where that is 0) and the counters inside
            the process that they carry, or pairs of seconds and bytes.
        growth_threshold: Last by first, above 1.
        limit_bytes: What the size may not exceed, for the time that is left.

    Raises:
        TypeError: A sample is neither of both, or holds something that is no number.
        ValueError: A size is negative, a time is not finite or lies before the one ahead of it, or *growth_threshold*
            is not above 1.
    """
    if isinstance(growth_threshold, bool) or not isinstance(growth_threshold, int | float):
        raise TypeError(f"growth_threshold must be a number, got {growth_threshold!r}")
    if not growth_threshold > 1:
        raise ValueError(f"growth_threshold must be above 1 (last by first), got {growth_threshold!r}")
    given: list[Reading] = list(samples)
    detector = LeakDetector(max(BLOCKS, min(_LARGEST_WINDOW, len(given) // 4)))
    for sample in given:
        _feed(detector, sample)
    result = detector.report(limit_bytes)
    if not given:
        return result
    first, last = given[0], given[-1]
    if len(given) < _PATIENT:
        result = _by_ratio(result, len(given), size_of(first), size_of(last), growth_threshold)
    result = replace(result, first_sample=first, last_sample=last, growth_percent=growth_percent(first, last))
    return worded(result, last.malloc_free_bytes if isinstance(last, MemoryUsage) else None)


def _feed(detector: LeakDetector, sample: Reading) -> None:
    if isinstance(sample, MemoryUsage):
        detector.update(
            sample.at,
            size_of(sample),
            python_blocks=sample.python_blocks,
            malloc_in_use_bytes=sample.malloc_in_use_bytes,
            malloc_free_bytes=sample.malloc_free_bytes,
        )
        return
    try:
        seconds, nbytes = sample
    except (TypeError, ValueError):
        raise TypeError(f"a sample must be a MemoryUsage or a pair of seconds and bytes, got {sample!r}") from None
    detector.update(seconds, nbytes)


def _by_ratio(
    result: LeakDetectionResult, count: int, first_bytes: int, last_bytes: int, growth_threshold: float
) -> LeakDetectionResult:
    large = count >= _FEWEST and last_bytes >= growth_threshold * first_bytes > 0
    if not large or result.verdict not in ("insufficient", "suspect"):
        return result
    reason = f"the last of {count} samples is {last_bytes / first_bytes:.2f} times the first"
    return replace(result, verdict="leak", reason=reason)
