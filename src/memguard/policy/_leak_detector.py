"""
Finds leaks while samples come in.

Rule 1: a leak is growth that is kept, neither fades nor recurs nor comes at once, and goes on for *patience* windows.
Rule 2: resident size is judged last. Where malloc holds more free, a rise of the resident size is not a leak.
Rule 3: thresholds follow the noise of the process; no size is assumed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from memguard.policy._collected import Collected
from memguard.policy._floors import BLOCKS, Ladder, Scale, Shape, plateau_of
from memguard.policy._garbage import Garbage
from memguard.policy._leak_result import Cause, LeakDetectionResult, Verdict, growth_percent, worded
from memguard.policy._trend import Mark, Marks, Trend, seconds_until, trend_of

_BLOCK_BYTES = 64
"""
A Python block counts as this much: most objects are of 32 to 128 bytes. It serves to compare, never to measure.
"""
_KIB = 1024
_LEAST: dict[str, tuple[float, int]] = {
    "resident size": (0.003, 64 * _KIB),
    "resident less free": (0.003, 64 * _KIB),
    "malloc in use": (0.005, 128 * _KIB),
    "python blocks": (0.005, 128 * _KIB),
}
"""For each signal the growth of a window that counts: this share of its floor, and this many bytes."""

_CAUSE_SHARE = 0.25
"""A signal that shows this part of what the strongest gained has to do with it."""

_GAP = 5
"""A pause of more than this many intervals is a machine that slept: the block that it falls into says nothing."""
_SILENT_BLOCKS = 4 * BLOCKS
"""A signal that is not given for four windows is forgotten: nobody would ever take its alarm back."""

_SETTLING = 8
"""The usual interval follows the last so many samples."""


_COLLECTED = "python blocks left by full collections"
_REASONS = {
    "leak": "kept rising, without fading, recurring or jumping",
    "suspect": "rose steadily, not yet for long enough",
    "warming-up": "rose less and less",
}


class _Finding(NamedTuple):
    signal: str
    level: int


def _stands(scale: Scale) -> bool:
    return scale.standing


def _rises(scale: Scale) -> bool:
    return scale.passes > 0 and scale.shape is Shape.RISING


def _has_risen(scale: Scale) -> bool:
    return scale.passes > 0


class _Signal:
    """One signal: the floor of the current block, and the ladder of those before."""

    __slots__ = ("_floor", "_measures", "_net_floor", "_silent_blocks", "ladder")

    def __init__(self, patience: float, least_share: float, least_growth: int) -> None:
        self._measures = (patience, least_share, least_growth)
        self.ladder = Ladder(*self._measures)
        self._silent_blocks = 0
        self.restart()

    def restart(self) -> None:
        """Forget the current block."""
        self._floor = self._net_floor = math.inf

    def see(self, nbytes: int, explained_bytes: int) -> None:
        """Take one value into the current block."""
        # Comparing costs half of what min() does, and this runs four times for each sample.
        if nbytes < self._floor:  # noqa: PLR1730
            self._floor = nbytes
        nbytes -= explained_bytes
        if nbytes < self._net_floor:  # noqa: PLR1730
            self._net_floor = nbytes

    def end_block(self) -> None:
        """Hand the floor on; a block without a value has none."""
        if self._floor != math.inf:
            self.ladder.add(self._floor, self._net_floor)
            self._silent_blocks = 0
            self.restart()
            return
        self._silent_blocks += 1
        if self._silent_blocks == _SILENT_BLOCKS:
            self.ladder = Ladder(*self._measures)


class LeakDetector:
    """
    Judges samples as they come, in constant memory. Not thread-safe: one thread calls it, or callers share a lock.

    It says nothing for one window, and calls a leak after about *patience* windows of growth. Resident size alone will
    do; the other signals find leaks below the swing of the load, and name the cause. A signal may be missing from some
    samples: it is judged by those that have it.

    What cannot be told from a leak before it ends: growth that is as steady as a leak for longer than *patience*
    windows and then stops, as of a large cache while it fills. Say what such caches hold with *explained_bytes*.

    Args:
        window: Samples that are judged together; rounded down to a multiple of 12. The shortest time scale; six
            more, each twice as long, are judged beside it.
        patience: How many windows growth must last. More is slower and calls fewer slow fills a leak.

    Raises:
        TypeError: *window* is no integer, or *patience* no number.
        ValueError: *window* is below 12, or *patience* is not in 1.25 to 100.
    """

    def __init__(self, window: int = 60, *, patience: float = 2.0) -> None:
        self._block_samples = _whole("window", window) // BLOCKS
        if self._block_samples < 1:
            raise ValueError(f"window must be {BLOCKS} samples or more, got {window!r}")
        if isinstance(patience, bool) or not isinstance(patience, int | float):
            raise TypeError(f"patience must be a number, got {patience!r}")
        if not 1.25 <= patience <= 100:
            raise ValueError(f"patience must be from 1.25 to 100, got {patience!r}")
        self._signals = {name: _Signal(patience, *least) for name, least in _LEAST.items()}
        self._resident, self._used, self._malloc, self._blocks = self._signals.values()
        self._garbage = Garbage()
        self._collected = Collected(
            self._block_samples * 2, self._block_samples * BLOCKS * patience, *_LEAST["python blocks"]
        )
        self._marks = Marks()
        self._mark: Mark | None = None
        self._samples = 0
        self._interval = 0.0
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None
        self._free_bytes: int | None = None
        self._leaking = False

    def update(
        self,
        seconds: float,
        rss_bytes: int,
        *,
        python_blocks: int | None = None,
        malloc_in_use_bytes: int | None = None,
        malloc_free_bytes: int | None = None,
        gc_runs: int | None = None,
        explained_bytes: int = 0,
    ) -> bool:
        """
        Take a sample; return True while a leak stands.

        Args:
            seconds: When, on a clock that never goes back.
            rss_bytes: Resident size, better without file pages.
            python_blocks: ``sys.getallocatedblocks()``.
            malloc_in_use_bytes: What malloc has handed out, mapped blocks included.
            malloc_free_bytes: What it holds free.
            gc_runs: Collections of the oldest generation so far, ``gc.get_stats()[2]["collections"]``: with them and
                the blocks a leak is seen below a deep sawtooth of garbage.
            explained_bytes: What caches with a bound hold. Growth counts only if it is there with these bytes and
                without. Which signal they are part of is not known, so they are taken from each: while a cache
                fills, a leak that is slower than the filling stays hidden; afterwards it does not.

        Raises:
            TypeError: A size that is no integer (a bool is none), or *seconds* is no number.
            ValueError: A size is negative, *seconds* is not finite or lies before the last sample.
        """
        # All is looked at before anything is taken: a sample that is refused leaves no trace.
        pause = self._pause_before(seconds)
        resident = _whole("rss_bytes", rss_bytes)
        explained = _whole("explained_bytes", explained_bytes)
        blocks = None if python_blocks is None else _whole("python_blocks", python_blocks)
        in_use = None if malloc_in_use_bytes is None else _whole("malloc_in_use_bytes", malloc_in_use_bytes)
        free = None if malloc_free_bytes is None else _whole("malloc_free_bytes", malloc_free_bytes)
        runs = None if gc_runs is None else _whole("gc_runs", gc_runs)

        self._advance(pause)
        # Under PYTHONMALLOC=malloc there are 0 blocks always: that is unknown, not none.
        if blocks:
            explained = self._see_blocks(blocks * _BLOCK_BYTES, explained, runs)
        self._resident.see(resident, explained)
        if free is not None:
            self._free_bytes = free
            self._used.see(max(0, resident - free), explained)
        if in_use is not None:
            self._malloc.see(in_use, explained)
        self._last = (seconds, resident)
        if self._first is None:
            self._first = self._last
        mark = self._mark
        self._mark = Mark(seconds, resident, seconds, resident) if mark is None else mark.with_sample(seconds, resident)
        self._samples += 1
        if self._samples == self._block_samples:
            self._end_block()
        return self._leaking or self._collected.standing

    def _see_blocks(self, nbytes: int, explained: int, runs: int | None) -> int:
        """Take the blocks, in bytes; return what is explained of the other signals too, garbage included."""
        if runs is not None:
            self._collected.see(nbytes, explained, runs)
        explained += self._garbage.see(nbytes, self._blocks.ladder.scales[0].floors, self._block_samples)
        self._blocks.see(nbytes, explained)
        return explained

    def _pause_before(self, seconds: float) -> float:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"seconds must be a number, got {seconds!r}")
        if not math.isfinite(seconds):
            raise ValueError(f"seconds must be finite, got {seconds!r}")
        if self._last is None:
            return 0.0
        if seconds < self._last[0]:
            raise ValueError(f"time went back: {seconds!r} after {self._last[0]!r}")
        return seconds - self._last[0]

    def _advance(self, pause: float) -> None:
        if not self._interval:
            self._interval = pause
        elif pause > _GAP * self._interval:
            self._restart_block()
            pause = _GAP * self._interval
        self._interval += (pause - self._interval) / _SETTLING

    def _restart_block(self) -> None:
        self._samples = 0
        self._mark = None
        for signal in self._signals.values():
            signal.restart()

    def _end_block(self) -> None:
        for signal in self._signals.values():
            signal.end_block()
        if self._mark is not None:
            self._marks.add(self._mark)
        self._mark = None
        self._samples = 0
        self._leaking = self._finding(_stands) is not None
        if not self._blocks.ladder.ready:
            # Too early for it, or the blocks are no longer given and were forgotten.
            self._collected.standing = False

    def report(self, limit_bytes: int | None = None) -> LeakDetectionResult:
        """
        Return what the samples so far say.

        The figures go by the longest time scale on which growth stands, or by the shortest of all.

        Args:
            limit_bytes: What resident size may not exceed, for the time that is left.

        Raises:
            TypeError: *limit_bytes* is no integer.
            ValueError: *limit_bytes* is negative.
        """
        limit = None if limit_bytes is None else _whole("limit_bytes", limit_bytes)
        verdict, found = self._judge()
        level = found.level if found else 0
        marks = self._marks.scales[level]
        trend = trend_of(marks)
        first, last = self._first, self._last
        if len(marks) == BLOCKS:
            first = (marks[0].low_at, marks[0].low_bytes)
        plateau = self._plateau(level) if verdict == "warming-up" else None
        left = None
        if limit is not None and last and _leads_there(verdict, trend, plateau, limit):
            left = seconds_until(limit, marks, trend.slope, last[0])
        result = LeakDetectionResult(
            verdict=verdict,
            cause=self._cause(level) if verdict in ("leak", "suspect") else None,
            growth_percent=growth_percent(first, last),
            first_sample=first,
            last_sample=last,
            growth_bytes_per_minute=trend.slope * 60,
            growth_interval=(trend.low * 60, trend.high * 60),
            seconds_to_limit=left,
            plateau_bytes=plateau,
            reason=self._reason(verdict, found),
        )
        return worded(result, self._free_bytes)

    def _finding(self, sign: Callable[[Scale], bool]) -> _Finding | None:
        """Return the first signal, and its longest scale, that *sign* holds for; resident size is asked last."""
        for name in ("python blocks", "malloc in use", "resident size"):
            level = self._signals[name].ladder.longest(sign)
            if level is not None and not (name == "resident size" and self._is_kept_free()):
                return _Finding(name, level)
        return None

    def _is_kept_free(self) -> bool:
        """Whether resident size, if it rose, did so by what malloc holds free."""
        used = self._used.ladder
        return used.ready and used.longest(_has_risen) is None

    def _judge(self) -> tuple[Verdict, _Finding | None]:
        if not any(signal.ladder.ready for signal in self._signals.values()):
            return "insufficient", None
        if found := self._finding(_stands):
            return "leak", found
        if self._collected.standing:
            return "leak", _Finding(_COLLECTED, 0)
        if found := self._finding(_rises):
            return "suspect", found
        fading = self._resident.ladder.fading()
        if fading is None:
            return "stable", None
        return "warming-up", _Finding("resident size", fading)

    def _cause(self, level: int) -> Cause | None:
        gains = {name: signal.ladder.scales[level].gain for name, signal in self._signals.items()}
        most = max(gains.values())
        grows = {
            name: signal.ladder.longest(_stands) is not None or gains[name] >= _CAUSE_SHARE * most > 0
            for name, signal in self._signals.items()
        }
        blocks, malloc = (self._signals[name].ladder.ready for name in ("python blocks", "malloc in use"))
        if self._collected.standing or (blocks and grows["python blocks"]):
            return "python objects"
        # Each tells only what the other leaves: without blocks, malloc's may hold Python objects as well.
        if not (blocks and malloc):
            return None
        return "native" if grows["malloc in use"] else "mapped or fragmented"

    def _plateau(self, level: int) -> int:
        return round(plateau_of(self._resident.ladder.scales[level].floors))

    def _reason(self, verdict: Verdict, found: _Finding | None) -> str:
        if verdict == "insufficient":
            return f"fewer than {self._block_samples * BLOCKS} samples"
        if found is None:
            return "nothing grows beyond its noise, keeps what it gained, and goes on"
        if found.signal == _COLLECTED:
            return f"{found.signal} {_REASONS[verdict]}"
        span = self._block_samples * BLOCKS * 2**found.level
        return f"{found.signal} {_REASONS[verdict]}, seen over {span} samples at a time"


def _leads_there(verdict: Verdict, trend: Trend, plateau: int | None, limit: int) -> bool:
    # A slope that may as well be none has no time to the limit, unless growth was found by other means.
    grows = trend.slope > 0 and (trend.low > 0 or verdict in ("leak", "suspect"))
    return grows and (plateau is None or plateau >= limit)


def _whole(name: str, value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    return number
