"""
What each operation costs: how often it ran, how long it took, what it needed at its peak and what it left behind.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from memguard.interrupts import is_interrupt
from memguard.logs import log
from memguard.sampling import PeakMeasurement, measure_cheaply
from memguard.units import format_bytes
from memguard.wrapping import wrap

P = ParamSpec("P")
R = TypeVar("R")

_MOST_NAMES = 1000
_OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """
    What all runs of one operation took.

    Sizes are of the whole process: what other threads took meanwhile is in them.

    Attributes:
        count: How often it ended, well or not.
        failed: How often with an exception.
        total_seconds: Time in all.
        max_seconds: The longest run.
        peak_bytes_max: The largest growth above the start of a run, at any moment of it.
        kept_bytes_total: What was still there at the ends of the runs, summed; negative where they freed memory.
        kept_bytes_max: What the run that left the most behind left behind.
    """

    count: int = 0
    failed: int = 0
    total_seconds: float = 0.0
    max_seconds: float = 0.0
    peak_bytes_max: int = 0
    kept_bytes_total: int = 0
    kept_bytes_max: int = 0

    @property
    def mean_seconds(self) -> float:
        """Time of a run on average; 0.0 before the first."""
        return self.total_seconds / self.count if self.count else 0.0

    def after(self, run: PeakMeasurement, *, failed: bool) -> OperationStatistics:
        """Return the statistics with one more run."""
        return replace(
            self,
            count=self.count + 1,
            failed=self.failed + failed,
            total_seconds=self.total_seconds + run.seconds,
            max_seconds=max(self.max_seconds, run.seconds),
            peak_bytes_max=max(self.peak_bytes_max, run.peak_bytes),
            kept_bytes_total=self.kept_bytes_total + run.kept_bytes,
            kept_bytes_max=max(self.kept_bytes_max, run.kept_bytes) if self.count else run.kept_bytes,
        )


class _Slot:
    """The statistics of one operation, replaced as a whole."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = OperationStatistics()


class Operations:
    """
    The statistics of every operation, by name.

    Nobody waits here, and nothing is half done: a run is added to what was there, and takes its place if nothing came
    between. So a tracked operation may end in a finalizer or a signal handler that interrupts another's end.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew; in a forked child, whose lock another thread may hold for ever."""
        self._lock = threading.RLock()
        self._by_name: dict[str, _Slot] = {}
        self._full = False

    def snapshot(self) -> dict[str, OperationStatistics]:
        """Return all of them as they are now."""
        return {name: slot.value for name, slot in self._by_name.copy().items()}

    def add(self, name: str, run: PeakMeasurement, *, failed: bool) -> None:
        """Count one run of *name*."""
        slot, added = self._slot(name), False
        while not added:
            before = slot.value
            after = before.after(run, failed=failed)
            with self._lock:
                if slot.value is before:
                    slot.value = after
                    added = True

    def _slot(self, name: str) -> _Slot:
        found = self._by_name.get(name)
        if found is not None:
            return found
        if len(self._by_name) < _MOST_NAMES:
            return self._by_name.setdefault(name, _Slot())
        # A name with a customer's number in it would grow without end: here of all places.
        full, self._full = self._full, True
        if not full:
            log.warning(
                "more than %d operations are tracked; %r and further ones count as %r: put what varies into fields",
                _MOST_NAMES,
                name,
                _OTHERS,
            )
        return self._by_name.setdefault(_OTHERS, _Slot())


class Tracked:
    """
    One run of an operation, entered with ``with`` or ``async with``; or a decorator that tracks each call.

    Made by :meth:`MemoryMonitor.track`. Once it is over it tells what the run took.

    Attributes:
        operation: Its name.
        fields: What else stands in the log record.
    """

    def __init__(self, operations: Operations, operation: str, fields: dict[str, Any]) -> None:
        self._operations = operations
        self._run: PeakMeasurement | None = None
        self.operation = operation
        self.fields = fields

    @property
    def peak_bytes(self) -> int:
        """The largest growth above the start, at any moment of the run; 0 before its end."""
        return 0 if self._run is None else self._run.peak_bytes

    @property
    def kept_bytes(self) -> int:
        """What of it was still there at the end; negative where the run freed memory."""
        return 0 if self._run is None else self._run.kept_bytes

    @property
    def before_bytes(self) -> int:
        """The resident size at the start."""
        return 0 if self._run is None else self._run.before_bytes

    @property
    def after_bytes(self) -> int:
        """The resident size at the end; that at the start before it."""
        return self.before_bytes + self.kept_bytes

    @property
    def seconds(self) -> float:
        """How long it took; 0.0 before its end."""
        return 0.0 if self._run is None else self._run.seconds

    def __enter__(self) -> Self:
        """Begin to measure."""
        if self._run is not None:
            raise RuntimeError(f"this run of {self.operation!r} was tracked already; call track() for each")
        self._run = measure_cheaply()
        self._run.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Count the run and log it."""
        run = self._run
        if run is None:
            raise RuntimeError(f"this run of {self.operation!r} was never entered")
        run.__exit__(kind, error, traceback)
        # A generator that is closed early has not failed.
        failed = error is not None and not isinstance(error, GeneratorExit)
        self._operations.add(self.operation, run, failed=failed)
        self._report(failed=failed)

    async def __aenter__(self) -> Self:
        """Begin to measure."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Count the run and log it."""
        self.__exit__(kind, error, traceback)

    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]:
        """
        Return *fn* with each call of it tracked: until it returns, its coroutine ends or its generator is done.

        Raises:
            TypeError: *fn* cannot be called.
        """
        if not callable(fn):
            raise TypeError(f"track wraps a function, got {fn!r}")
        wrapped: Callable[P, R] = wrap(fn, self._again)
        return wrapped

    def activate(self) -> None:
        """Nothing: a measurement goes on between the steps of a generator."""

    def deactivate(self) -> None:
        """Nothing, as well."""

    def _again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tracked:  # noqa: ARG002 - one signature
        return Tracked(self._operations, self.operation, self.fields)

    def _report(self, failed: bool) -> None:
        if not log.shows(logging.DEBUG):
            return
        log_operation(
            logging.DEBUG,
            self.operation,
            before_bytes=self.before_bytes,
            after_bytes=self.after_bytes,
            more=f", peak +{format_bytes(self.peak_bytes)}, {self.seconds:.3f} s{', failed' if failed else ''}",
            fields=self.fields,
        )


def log_operation(
    level: int, operation: str, *, before_bytes: int, after_bytes: int, more: str, fields: dict[str, Any]
) -> None:
    """Log what an operation did to memory; *fields* stand in the text and in the record, *more* in the text."""
    change = after_bytes - before_bytes
    log.log(
        level,
        "%s%s: %s -> %s (%s%s)%s",
        operation,
        "".join(f" {key}={_shown(value)}" for key, value in fields.items()),
        format_bytes(before_bytes),
        format_bytes(after_bytes),
        "+" if change >= 0 else "",
        format_bytes(change),
        more,
        extra={
            "memguard.operation": operation,
            "memguard.before_bytes": before_bytes,
            "memguard.after_bytes": after_bytes,
            "memguard.change_bytes": change,
            **{f"memguard.{key}": value for key, value in fields.items()},
        },
    )


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        if is_interrupt(error):
            raise
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
