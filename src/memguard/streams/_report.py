"""
What a job over many items has done, and how far it is. No clock of its own, no waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from memguard.interrupts import is_interrupt
from memguard.logs import log
from memguard.values import Level, MemoryUsage, Progress

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ChunkReport(Generic[R]):
    """
    What was done.

    Attributes:
        results: What each call of the function returned, in order; empty where ``on_result`` took them.
        items_done: Items that were done.
        chunks_done: Calls of the function that returned.
        complete: Whether every item of the source was done.
        next_index: The first item that was not done: where to go on.
        warnings: What went otherwise than asked, in words.
        seconds: How long it took.
        peak_bytes: Growth of what is in use, as the breaker saw it; None where it did not look.
        pending: Items that were taken from the source and not done, from *next_index* on: with an iterator, go on with
            these and then with the iterator.
    """

    results: list[R]
    items_done: int
    chunks_done: int
    complete: bool
    next_index: int
    warnings: tuple[str, ...]
    seconds: float
    peak_bytes: int | None
    pending: tuple[Any, ...] = ()


@dataclass(slots=True)
class Account(Generic[R]):
    """
    The books of one job.

    Attributes:
        total: Items in all, where somebody knows.
        on_progress: Told after each chunk, and once at the end.
        on_result: Takes each result in place of the report.
        clock: Seconds, monotonic.
    """

    total: int | None
    on_progress: Callable[[Progress], object] | None
    on_result: Callable[[R], object] | None
    clock: Callable[[], float]
    results: list[R] = field(default_factory=list)
    items_done: int = 0
    chunks_done: int = 0
    next_index: int = 0
    warnings: list[str] = field(default_factory=list)
    _began: float = 0.0
    _ahead: dict[int, int] = field(default_factory=dict)
    _first_used: int | None = None
    _most_used: int = 0

    def __post_init__(self) -> None:
        self._began = self.clock()

    def saw(self, usage: MemoryUsage | None) -> None:
        """Note a reading of the breaker's."""
        if usage is None:
            return
        if self._first_used is None:
            self._first_used = usage.used_bytes
        self._most_used = max(self._most_used, usage.used_bytes)

    def done(self, index: int, items: int, result: R) -> None:
        """Book *items* from *index* on as done; hand the result over."""
        if self.on_result is not None:
            self.on_result(result)
        else:
            self.results.append(result)
        self.items_done += items
        self.chunks_done += 1
        self._ahead[index] = items
        while (size := self._ahead.pop(self.next_index, None)) is not None:
            self.next_index += size

    def tell(self, chunk_size: int, level: Level, *, complete: bool = False, final: bool = False) -> None:
        """Report the progress; what looks like the end is left to the final report."""
        if self.on_progress is None or (not final and self.total is not None and self.items_done >= self.total):
            return
        try:
            self.on_progress(self._progress(chunk_size, level, complete=complete))
        except Exception as error:
            if is_interrupt(error):
                raise
            # A broken progress bar must not stop the job.
            log.exception("on_progress %r failed", self.on_progress)

    def report(self, *, complete: bool, pending: tuple[Any, ...] = ()) -> ChunkReport[R]:
        """Return what was done."""
        peak = None if self._first_used is None else self._most_used - self._first_used
        return ChunkReport(
            self.results,
            self.items_done,
            self.chunks_done,
            complete,
            self.next_index,
            tuple(self.warnings),
            self.clock() - self._began,
            peak,
            pending,
        )

    def _progress(self, chunk_size: int, level: Level, *, complete: bool) -> Progress:
        seconds = self.clock() - self._began
        rate = self.items_done / seconds if seconds > 0 else 0.0
        percent = eta = None
        if self.total is not None:
            percent = 100.0
            if not complete:
                # 100 means finished, whatever somebody thought the total to be.
                percent = min(99.9, self.items_done * 100 / self.total) if self.total else 0.0
            eta = max(0, self.total - self.items_done) / rate if rate > 0 else None
            eta = 0.0 if complete else eta
        return Progress(self.items_done, self.total, percent, rate, eta, chunk_size, level)
