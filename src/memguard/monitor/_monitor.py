"""
Watches memory over hours: samples, alerts, leaks.

It decides nothing that the breaker decides, and shares its readings, so that no two figures of one moment disagree.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

from memguard.forking import forget_in_child
from memguard.interrupts import is_interrupt
from memguard.logs import log
from memguard.monitor._clockwork import Clockwork
from memguard.monitor._config import check_callable, make_config
from memguard.monitor._inside import CollectorTime, Inside, full_collections
from memguard.monitor._operations import Operations, OperationStatistics, Tracked, log_operation
from memguard.policy import LeakDetectionResult, LeakDetector, MinuteGrowth, detect_leak
from memguard.relief import allocator_usage, shrinkables
from memguard.sampling import Sampler, memory_usage
from memguard.settings import settings
from memguard.signals import Outbox, Signal, contained
from memguard.turns import Claim, Turn
from memguard.units import ByteSize, Threshold, format_bytes
from memguard.values import Gate, Level, MemoryUsage, gate_of

_FRESH_SECONDS = 1.0


@runtime_checkable
class Reader(Protocol):
    """A breaker that shares its readings."""

    # Methods only: before Python 3.12, to look for a property is to read it.
    def tick(self) -> MemoryUsage: ...
    def usage(self) -> MemoryUsage: ...
    def health(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class MemoryAlert:
    """
    Something that a person should hear of began or ended.

    Attributes:
        kind: ``"level"``: the level changed; ``"growth"``: memory grows faster than it may, or no longer does.
        level: How tight memory is now.
        active: Whether it began or got worse; False once it is over.
        usage: The sample that said so.
        growth_bytes_per_minute: Over the last minute; None while there is no minute to look back on.
        message: The same in words.
    """

    kind: Literal["level", "growth"]
    level: Level
    active: bool
    usage: MemoryUsage
    growth_bytes_per_minute: float | None
    message: str


class MemoryMonitor:
    """
    Samples memory on a thread of its own, or by :meth:`tick`; says when it is tight, grows fast, or leaks.

    Args:
        breaker: Whose readings it shares; None for the default one.
        sample_interval: Seconds between two samples: 60, or ``MEMGUARD_SAMPLE_INTERVAL``.
        max_samples: How many are kept, and how many the leak detector's window spans.
        growth_threshold: By what factor memory grows that "leaks" where there are too few samples for anything better.
        alerts: Whether to log alerts and announce them.
        warn_at: WARNING from here: a share of the limit (``"70%"``), or a size (``"1 GB"``) that is held against the
            resident size of this process. None: as the breaker has it.
        critical_at: CRITICAL from here, likewise.
        max_growth_per_minute: Growth of the resident size that is worth an alert.
        log_interval: Seconds between two log lines on how memory is; None for none.
        sampler: Takes the readings; None asks the breaker.
        clock: Seconds, monotonic.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument cannot be meant.
    """

    def __init__(
        self,
        *,
        breaker: Gate | None = None,
        sample_interval: float | None = None,
        max_samples: int = 60,
        growth_threshold: float = 1.5,
        alerts: bool = True,
        warn_at: Threshold | None = None,
        critical_at: Threshold | None = None,
        max_growth_per_minute: ByteSize = "10 MB",
        log_interval: float | None = None,
        sampler: Sampler | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = make_config(
            breaker=breaker,
            sample_interval=sample_interval,
            max_samples=max_samples,
            growth_threshold=growth_threshold,
            alerts=alerts,
            warn_at=warn_at,
            critical_at=critical_at,
            max_growth_per_minute=max_growth_per_minute,
            log_interval=log_interval,
            sampler=sampler,
            clock=clock,
        )
        self._operations = Operations()
        self._explained: dict[str, Callable[[], int]] = {}
        self._collector = CollectorTime()
        self._clockwork: Clockwork | None = None
        self.on_sample: Signal[MemoryUsage] = Signal("memguard.on_sample")
        """Tells of each sample, in the thread that took it."""
        self.on_alert: Signal[MemoryAlert] = Signal("memguard.on_alert")
        """Tells when the level changes, and when fast growth begins and ends; not of every sample in between."""
        self.on_verdict: Signal[LeakDetectionResult] = Signal("memguard.on_verdict")
        """Tells each time the leak detector's verdict changes."""
        self.on_leak: Signal[LeakDetectionResult] = Signal("memguard.on_leak")
        """Tells when the verdict becomes "leak", and when it no longer is."""
        self._turn = Turn()
        self._forget()
        forget_in_child(self)
        # What it needs is imported now: a signal handler that asks in the midst of an import finds half a module.
        contained(allocator_usage, what="allocator")

    def _forget(self) -> None:
        """Begin anew: at first, and in a forked child, whose memory has another history and none of the threads."""
        self._lock = threading.RLock()
        self._inbox: deque[_Taken] = deque()
        self._outbox = Outbox(self._tell)
        self._inside = Inside(self._config.clock)
        self._samples: deque[MemoryUsage] = deque(maxlen=self._config.max_samples)
        self._detector = LeakDetector(window=max(12, self._config.max_samples))
        self._level = Level.NORMAL
        self._minute = MinuteGrowth()
        self._growth: float | None = None
        self._growing = False
        self._result = self._detector.report(None)
        self._sample_at = self._log_at = float("-inf")
        self._failing = False
        self._operations.forget()

    # ----- running

    def start(self) -> None:
        """
        Begin to sample on a daemon thread, at once and then at each interval; nothing if it runs.

        Where ``MEMGUARD_MONITOR=off`` nothing is started. In a forked child a running monitor runs as well, with a
        history of its own.

        Raises:
            RuntimeError: No thread can be started. It is stopped then.
        """
        if settings().monitor is False:
            log.info("memguard: the monitor stays off, as MEMGUARD_MONITOR says")
            return
        before = self._clockwork
        if before is not None and before.running:
            return
        clockwork = Clockwork(self, "memguard-monitor", self._collector.remove)
        try:
            with self._lock:
                if self._clockwork is before:
                    self._clockwork = clockwork
            if self._clockwork is clockwork:
                self._start(clockwork)
        except BaseException as error:
            clockwork.end()
            if self._clockwork in (None, clockwork):
                self.stop()
            if not isinstance(error, RuntimeError):  # a signal handler's
                raise
            raise RuntimeError(f"the monitor cannot run: {error}; call tick() by hand, or start it later") from error

    def _start(self, clockwork: Clockwork) -> None:
        self._sample_at = float("-inf")
        self._log_at = time.monotonic() + (self._config.log_interval or 0.0)
        self._settle()
        atexit.register(clockwork.stop)
        clockwork.start()
        self._settle()  # a signal handler or another thread may have stopped it meanwhile

    def _settle(self) -> None:
        """Hear of collections exactly while it runs."""
        if self._clockwork is None:
            self._collector.remove()
        else:
            self._collector.install()

    def stop(self) -> None:
        """
        End the thread and wait for it; nothing if none runs. Samples are kept, and it can be started again.

        May be called from anywhere: a signal handler, a listener, a finalizer.
        """
        clockwork = self._clockwork
        if clockwork is None:
            self._settle()
            return
        # In an order in which it can be done again: an exception of a signal handler may come anywhere.
        clockwork.end()
        atexit.unregister(clockwork.stop)
        with self._lock:
            if self._clockwork is clockwork:
                self._clockwork = None
        self._settle()
        clockwork.stop()

    @property
    def running(self) -> bool:
        """Whether it samples by itself."""
        clockwork = self._clockwork
        return clockwork is not None and clockwork.running

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    async def __aenter__(self) -> Self:
        """Start."""
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, without holding up the event loop."""
        import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

        await asyncio.to_thread(self.stop)

    def beat(self) -> float:
        """Do what is due; return the seconds until something is. The monitor's own thread calls this."""
        try:
            self._sample_and_log()
            self._failing = False
        except BaseException:
            failing, self._failing = self._failing, True
            if not failing:
                log.exception("memguard: the monitor could not take a sample, or tell of it; it goes on trying")
        due_at = self._sample_at if self._config.log_interval is None else min(self._sample_at, self._log_at)
        return max(0.0, due_at - time.monotonic())

    def _sample_and_log(self) -> None:
        now = time.monotonic()
        if now >= self._sample_at:
            self._sample_at = _next(self._sample_at, now, self._config.sample_interval)
            self.tick()
        if self._config.log_interval is not None and now >= self._log_at:
            self._log_at = _next(self._log_at, now, self._config.log_interval)
            self._log_line()

    # ----- sampling

    def tick(self) -> MemoryUsage:
        """
        Take a sample by hand, judge it, and tell the listeners if something changed.

        Raises:
            SamplingError: The machine does not give the figures.
        """
        usage = self._read()
        if self._config.sampler is None:
            usage = self._inside.fill(usage)
        level = self._level_of(usage)
        explained = self._explained_bytes()
        collections = full_collections() if self._config.sampler is None else None
        taken = _Taken(usage, level, explained, collections)
        self._inbox.append(taken)
        self._judge_all()
        self._outbox.deliver()
        return taken.usage

    def _judge_all(self) -> None:
        """Judge what was taken, in order; nothing while somebody else is at it: that one goes on with ours."""
        while self._inbox:
            claim = Claim(self._turn)
            try:
                if not claim.take():
                    return
                while self._inbox:
                    self._judge(self._inbox.popleft())
            finally:
                claim.give_back()

    def _judge(self, taken: _Taken) -> None:
        last = self._last()
        if last is not None and taken.usage.at < last.at:
            taken.usage = replace(taken.usage, at=last.at)
        usage = taken.usage
        self._samples.append(usage)
        self._outbox.put(usage)
        self._growth = self._minute.observe(usage.at, usage.rss_bytes)
        self._judge_level(taken.level, usage)
        self._judge_growth(usage)
        self._judge_leak(usage, taken.explained_bytes, taken.collections)

    def _last(self) -> MemoryUsage | None:
        try:
            return self._samples[-1]
        except IndexError:
            return None

    def _read(self) -> MemoryUsage:
        reader = self._reader()
        if self._config.sampler is not None:
            usage = self._config.sampler()
        else:
            usage = memory_usage() if reader is None else reader.tick()
        return replace(usage, at=self._config.clock())

    def _reader(self) -> Reader | None:
        if self._config.sampler is not None:
            return None
        gate: object = gate_of(self._config.breaker)
        return gate if isinstance(gate, Reader) else None

    def _level_of(self, usage: MemoryUsage) -> Level:
        if self._config.lines is not None:
            return self._config.lines.level(self._level, usage)
        return gate_of(self._config.breaker).level

    def _explained_bytes(self) -> int:
        # The caches of this process explain themselves; a foreign sampler speaks of another process.
        cached = self._inside.cached_bytes() if self._config.sampler is None else 0
        return cached + sum(max(0, nbytes) for nbytes in self._explanations().values())

    def _explanations(self) -> dict[str, int]:
        told = {}
        for name, read in self._explained.copy().items():
            try:
                told[name] = int(read())
            except Exception as error:
                if is_interrupt(error):
                    raise
                log.exception("memguard: %r cannot be explained any more and counts as nothing", name)
                self._explained.pop(name, None)
        return told

    def _judge_level(self, level: Level, usage: MemoryUsage) -> None:
        before, self._level = self._level, level
        if level is not before:
            lines = "" if self._config.lines is None else f"; {self._config.lines.describe()}"
            text = f"memory is {level.name.lower()} (was {before.name.lower()}): {_described(usage)}{lines}"
            self._outbox.put(MemoryAlert("level", level, level > before, usage, self._growth, text))

    def _judge_growth(self, usage: MemoryUsage) -> None:
        before, growth = self._growing, self._growth
        self._growing = growth is not None and growth > self._config.max_growth_bytes
        if self._growing is before:
            return
        text = (
            f"memory {'grows' if self._growing else 'no longer grows'} by more than "
            f"{format_bytes(self._config.max_growth_bytes)} a minute: {_described(usage)}, "
            f"{format_bytes(round(growth or 0))} in the last minute"
        )
        self._outbox.put(MemoryAlert("growth", self._level, self._growing, usage, growth, text))

    def _judge_leak(self, usage: MemoryUsage, explained_bytes: int, collections: int | None) -> None:
        self._detector.update(
            usage.at,
            usage.anon_bytes or usage.rss_bytes,
            python_blocks=usage.python_blocks,
            malloc_in_use_bytes=usage.malloc_in_use_bytes,
            malloc_free_bytes=usage.malloc_free_bytes,
            explained_bytes=explained_bytes,
            gc_runs=collections,
        )
        before, self._result = self._result, self._detector.report(usage.limit_bytes)
        if before.verdict != self._result.verdict:
            self._outbox.put(_VerdictChange(before.verdict, self._result))

    def _tell(self, event: MemoryUsage | MemoryAlert | _VerdictChange) -> None:
        if isinstance(event, MemoryUsage):
            self.on_sample.announce(event)
        elif isinstance(event, _VerdictChange):
            self._tell_verdict(event)
        elif self._config.alerts:
            log.log(_log_level(event), "memguard: %s", event.message)
            self.on_alert.announce(event)

    def _tell_verdict(self, change: _VerdictChange) -> None:
        result = change.result
        if self._config.alerts:
            level = logging.WARNING if result.detected else logging.DEBUG
            log.log(level, "memguard: verdict %s (was %s): %s", result.verdict, change.before, result.recommendation)
        self.on_verdict.announce(result)
        if result.detected or change.before == "leak":
            self.on_leak.announce(result)

    def _log_line(self) -> None:
        usage = self._latest()
        growth = self._growth
        rate = "" if growth is None else f", {format_bytes(round(growth))} a minute"
        log.info("memguard: %s%s, verdict %s", _described(usage), rate, self._result.verdict)

    # ----- asking

    @property
    def samples(self) -> tuple[MemoryUsage, ...]:
        """The samples that are kept, oldest first."""
        while True:
            try:
                return tuple(self._samples)
            except RuntimeError:  # one came in between
                continue

    def detect_leak(self) -> LeakDetectionResult:
        """
        Return what the samples say; ``"insufficient"`` while there are too few.

        Judged sample by sample as they came, over a longer time than the samples that are kept.
        """
        result, samples = self._result, self.samples
        if result.verdict != "insufficient" or not samples:
            return result
        limit = samples[-1].limit_bytes
        return detect_leak(samples, growth_threshold=self._config.growth_threshold, limit_bytes=limit)

    def is_critical(self) -> bool:
        """Tell whether memory is critical now, by a reading that is a second old at most."""
        return self._level_of(self._latest()) is Level.CRITICAL

    def _latest(self) -> MemoryUsage:
        """Return a reading that is a second old at most."""
        last = self._last()
        if last is not None and self._config.clock() - last.at < _FRESH_SECONDS:
            return last
        reader = self._reader()
        return self._read() if reader is None else reader.usage()

    def health(self) -> dict[str, Any]:
        """Return what a health endpoint shows, JSON-ready: the breaker's, the leak verdict, operations, collections."""
        reader, usage = self._reader(), self._latest()
        level = self._level_of(usage)
        result, heap = self.detect_leak(), allocator_usage()
        return {
            **(_health_of(usage) if reader is None else reader.health()),
            "level": level.name.lower(),
            "growth_bytes_per_minute": _rounded(self._growth),
            "samples": len(self.samples),
            "leak": {
                "verdict": result.verdict,
                "cause": result.cause,
                "growth_percent": round(result.growth_percent, 1),
                "growth_bytes_per_minute": _rounded(result.growth_bytes_per_minute),
                "seconds_to_limit": _rounded(result.seconds_to_limit),
                "recommendation": result.recommendation,
            },
            "allocator": {"name": heap.name, "in_use_bytes": heap.in_use_bytes, "free_bytes": heap.free_bytes},
            "explained_bytes": {
                "caches": shrinkables.held_bytes(),
                **self._explanations(),
            },
            "operations": {
                name: {
                    "count": each.count,
                    "failed": each.failed,
                    "mean_seconds": round(each.mean_seconds, 6),
                    "max_seconds": round(each.max_seconds, 6),
                    "peak_bytes_max": each.peak_bytes_max,
                    "kept_bytes_total": each.kept_bytes_total,
                }
                for name, each in self._operations.snapshot().items()
            },
            "gc": {"runs": self._collector.runs, "seconds": round(self._collector.seconds, 6)},
        }

    # ----- operations

    @property
    def operations(self) -> Mapping[str, OperationStatistics]:
        """What each tracked operation took so far, by name."""
        return MappingProxyType(self._operations.snapshot())

    def track(self, operation: str, **fields: Any) -> Tracked:
        """
        Measure a run of *operation*: ``with monitor.track("import", rows=n): ...``, or ``@monitor.track("import")``.

        Works with ``with``, ``async with``, and as a decorator of plain functions, coroutines and generators. The peak
        is the kernel's high-water mark where there is one, so a spike inside one C call is in it. Costs about a
        tenth of a millisecond.

        Args:
            operation: Its name; few different ones. What varies goes into *fields*.
            fields: Stand in the log record, at level DEBUG.

        Raises:
            TypeError: *operation* is not text.
        """
        if not isinstance(operation, str):
            raise TypeError(f"track takes the operation's name, got {operation!r}; write @monitor.track('name')")
        return Tracked(self._operations, operation, fields)

    def log_memory_usage(self, operation: str, before: MemoryUsage, after: MemoryUsage) -> None:
        """Log what *operation* did to memory, from two readings (:func:`memguard.memory_usage`) around it."""
        share = f", {after.percent:.0f} % of {format_bytes(after.limit_bytes)} in use, {after.at - before.at:.3f} s"
        log_operation(
            logging.INFO,
            operation,
            before_bytes=before.rss_bytes,
            after_bytes=after.rss_bytes,
            more=share,
            fields={},
        )

    def explain(self, name: str, read: Callable[[], int]) -> Callable[[], None]:
        """
        Say that some bytes are known: a cache's, say, that fills to its bound. Their growth is no leak.

        Args:
            name: Stands in :meth:`health`; the same name again replaces what was said before.
            read: Returns the bytes held now; called with each sample, in the thread that takes it.

        Returns:
            A function that takes it back.

        Raises:
            TypeError: *read* cannot be called.
        """
        known = check_callable(read, "read")
        self._explained[name] = known

        def forget() -> None:
            if self._explained.get(name) is known:
                del self._explained[name]

        return forget

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<MemoryMonitor {state}, {len(self._samples)} samples, verdict {self._result.verdict}>"

    def _forget_threads(self) -> None:
        clockwork, self._clockwork = self._clockwork, None
        self._forget()
        self._settle()
        if clockwork is not None:
            atexit.unregister(clockwork.stop)
            self.start()


@dataclass(slots=True)
class _Taken:
    """A sample that was taken and is to be judged, with what was known when it was."""

    usage: MemoryUsage
    level: Level
    explained_bytes: int
    collections: int | None


@dataclass(frozen=True, slots=True)
class _VerdictChange:
    before: str
    result: LeakDetectionResult


def _described(usage: MemoryUsage) -> str:
    return (
        f"{format_bytes(usage.rss_bytes)} resident, {format_bytes(usage.used_bytes)} of "
        f"{format_bytes(usage.limit_bytes)} in use ({usage.percent:.0f} %, {usage.source})"
    )


def _health_of(usage: MemoryUsage) -> dict[str, Any]:
    return {
        "used_bytes": usage.used_bytes,
        "limit_bytes": usage.limit_bytes,
        "headroom_bytes": usage.headroom_bytes,
        "percent": round(usage.percent, 1),
        "source": usage.source,
        "rss_bytes": usage.rss_bytes,
    }


def _log_level(alert: MemoryAlert) -> int:
    if not alert.active:
        return logging.INFO
    return logging.ERROR if alert.kind == "level" and alert.level is Level.CRITICAL else logging.WARNING


def _next(due_at: float, now: float, interval: float) -> float:
    """Return when something is due again that was due at *due_at*: in step; what was missed is not made up for."""
    following = due_at + interval
    return following if following > now else now + interval


def _rounded(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else round(value)
