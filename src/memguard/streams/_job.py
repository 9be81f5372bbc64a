"""
What the sync and the async job have in common: arguments, what follows on a refusal, and the books.

Nothing here waits.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sized
from concurrent.futures import Executor
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast, get_args

from memguard.errors import ChunksRefusedError, MemoryCircuitBreakerError
from memguard.policy import ChunkSize
from memguard.settings import settings
from memguard.streams._arguments import check_budget, check_count, check_seconds
from memguard.streams._held import Held
from memguard.streams._report import Account, ChunkReport
from memguard.streams._shelf import Shelf
from memguard.units import ByteSize, format_bytes
from memguard.values import Gate, Hold, Progress, gate_of

T = TypeVar("T")
R = TypeVar("R")
OnPressure: TypeAlias = Literal["shrink", "wait", "partial", "raise"]
OnMemoryError: TypeAlias = Literal["raise", "shrink"]
DEFAULT_CHUNK_SIZE = 10_000


class Step(enum.Enum):
    """What follows on a refusal."""

    AGAIN = "ask again, for a smaller chunk"
    COLLECT = "wait until one of the chunks that run is done, and ask again"
    WAIT = "wait for room, as long as the job's patience lasts"
    STOP = "end the job with what is done"
    RAISE = "raise the refusal"


class Job(Generic[R]):
    """
    One run over many items: sizes, the gate, the books.

    Attributes:
        size: How large the next chunk shall be.
        shelf: Items that were taken and are not done.
        stopping: No further chunk shall be begun.
        copies: How many times a chunk is in memory while it runs: what is reserved for it is as many times its bytes.
        gave_up: It ends because chunks were refused; the caller may go on with the source.
    """

    def __init__(
        self,
        items: object,
        *,
        chunk_size: int | None,
        max_bytes: ByteSize | None,
        total: int | None,
        on_progress: Callable[[Progress], object] | None,
        on_result: Callable[[R], object] | None,
        breaker: Gate | None,
        min_chunk_size: int | None,
        stop_when: Callable[[R], bool] | None,
        on_pressure: OnPressure,
        patience: float | None,
        on_memory_error: OnMemoryError,
    ) -> None:
        self.size = _sizes(chunk_size, min_chunk_size)
        self.budget = check_budget(max_bytes)
        self.patience = None if patience is None else check_seconds(patience, "patience", or_zero=True)
        self._on_pressure = _check_choice(on_pressure, "on_pressure", get_args(OnPressure))
        self._on_memory_error = _check_choice(on_memory_error, "on_memory_error", get_args(OnMemoryError))
        if total is None and isinstance(items, Sized):
            total = len(items)
        if total is not None:
            total = check_count(total, "total", least=0)
        if self._on_pressure == "wait":
            self.patience = None
        self.gate = gate_of(breaker)
        self.account: Account[R] = Account(total, on_progress, on_result, time.monotonic)
        self.shelf: Shelf[Any] = Shelf()
        self._stop_when = stop_when
        self._shrunk = self._ran_out = False
        self.stopping = self.gave_up = False
        self.copies = 1

    # ----- admission

    @property
    def chunk_bytes(self) -> int | None:
        """What the next chunk may weigh; None where nobody asked."""
        return None if self.budget is None else max(1, self._needed_bytes)

    @property
    def _needed_bytes(self) -> int:
        """What the next chunk is about to need: its share of the byte budget, or nothing that is known."""
        return 0 if self.budget is None else self.budget * self.size.items // self.size.largest

    def ask(self) -> Held:
        """
        Return what to hold while the next chunk runs, not entered yet.

        Raises:
            MemoryCircuitBreakerError: It is refused.
        """
        self.account.saw(self.gate.check())
        return Held(self.gate.reserve(self._needed_bytes * self.copies) if self.budget is not None else None)

    def ask_for_room(self, seconds: float | None) -> Held:
        """Return what to hold, not entered yet; entering it waits up to *seconds*, for ever if None."""
        hold: Hold = self.gate.reserve(self._needed_bytes * self.copies, timeout=seconds)
        return Held(hold)

    def refused(self, error: MemoryCircuitBreakerError, *, running: bool) -> Step:
        """
        Decide what to do about a refused chunk.

        Args:
            error: The refusal.
            running: Whether chunks of this job run: their bytes come back.

        Raises:
            ChunksRefusedError: The caller shall know, and what is done.
        """
        if self._on_pressure == "raise":
            self.give_up(error)
            return Step.RAISE
        if self._on_pressure == "shrink" and self._shrink(error):
            return Step.AGAIN
        if running:
            return Step.COLLECT
        if self._on_pressure == "partial":
            self.account.warnings.append(f"stopped after {self.account.items_done} items: {error}")
            self.stopping = self.gave_up = True
            return Step.STOP
        if never_fits(error) or self.patience == 0:
            self.give_up(error)
            return Step.RAISE
        return Step.WAIT

    def give_up(self, error: MemoryCircuitBreakerError) -> None:
        """
        Note that the job ends, and what is done; the caller raises *error* if this does not raise.

        Raises:
            ChunksRefusedError: With what is done, where chunks were made smaller first.
        """
        self.gave_up = True
        report = self._report(complete=False)
        if self._on_pressure == "shrink":
            raise ChunksRefusedError(error, report) from error
        # No attribute of the class: whoever uses a breaker by itself has no report. But results shall not be lost.
        cast("Any", error).report = report

    def _shrink(self, error: MemoryCircuitBreakerError) -> bool:
        smaller = self.size.refused()
        if smaller is None:
            return False
        if not self._shrunk or self.size.items == self.size.largest:
            self._shrunk = True
            self.account.warnings.append(
                f"chunks were made smaller than {self.size.largest} items: "
                f"{format_bytes(error.usage.used_bytes)} of {format_bytes(error.usage.limit_bytes)} in use"
            )
        self.size = smaller
        return True

    # ----- the books

    @property
    def keeps_items(self) -> bool:
        """Whether the items of a chunk that runs may be needed again."""
        return self._on_memory_error == "shrink"

    def runs_again(self, items: int) -> bool:
        """Decide whether a chunk of *items* in which memory ran out is done again in smaller ones."""
        smaller = self.size.failed(items) if self.keeps_items else None
        if smaller is None:
            return False
        if not self._ran_out:
            self._ran_out = True
            self.account.warnings.append(
                f"the function raised MemoryError on {items} items; such chunks were run again in smaller ones"
            )
        self.size = smaller
        return True

    def finished(self, index: int, items: int, result: R) -> None:
        """Book a call of the function that returned."""
        self.account.done(index, items, result)
        if self._stop_when is not None and self._stop_when(result):
            self.stopping = True

    def chunk_over(self) -> None:
        """Note that a whole chunk is done, and tell."""
        self.size = self.size.done()
        self.account.tell(self.size.items, self.gate.level)

    def conclude(self, source: Failing) -> ChunkReport[R]:
        """
        Raise the error of *source*, now that all items before it are done; return the report if there is none.

        A job that stopped before the items ran out has a report to hand over: there an error is one of its warnings.
        """
        if self.stopping and isinstance(source.error, Exception):
            self.account.warnings.append(f"the source failed before its end: {source.error!r}")
            source.error = None
        source.raise_error()
        complete = not self.stopping
        self.account.tell(self.size.items, self.gate.level, complete=complete, final=True)
        return self._report(complete=complete)

    def _report(self, *, complete: bool) -> ChunkReport[R]:
        return self.account.report(complete=complete, pending=self.shelf.pending)


class Failing(Protocol):
    """A reader, with the error that it keeps back."""

    error: BaseException | None

    def raise_error(self) -> None:
        """Raise it, and forget it."""


def raise_what_none_may_swallow(source: Failing) -> None:
    """Beside an error of the job, raise a KeyboardInterrupt or the like of *source*; forget any other error of it."""
    if isinstance(source.error, Exception):
        source.error = None
    source.raise_error()


def never_fits(error: MemoryCircuitBreakerError) -> bool:
    """Tell whether waiting is of no use, as the error itself says."""
    retry_after: float | None = error.retry_after
    return retry_after is None


def _sizes(chunk_size: int | None, min_chunk_size: int | None) -> ChunkSize:
    if chunk_size is None:
        chunk_size = settings().chunk_size
    largest = check_count(DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size, "chunk_size")
    smallest = max(1, largest // 4)
    if min_chunk_size is not None:
        smallest = check_count(min_chunk_size, "min_chunk_size")
    if smallest > largest:
        raise ValueError(f"min_chunk_size={smallest} is above chunk_size={largest}")
    return ChunkSize(largest, smallest, largest)


def _check_choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}; got {value!r}")
    return str(value)


def check_executor(executor: Executor | None, concurrency: int, *, needed: bool) -> int:
    """
    Return *concurrency* as an int.

    Raises:
        TypeError: *executor* cannot take work.
        ValueError: More than one at a time, and nobody who could do that.
    """
    width = check_count(concurrency, "concurrency")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor has a submit(fn, *args) that returns a future; got {executor!r}")
    if width > 1 and executor is None and needed:
        raise ValueError(f"concurrency={width} needs an executor: a function runs once at a time without one")
    return width


def call(fn: Callable[[list[T]], R], items: list[T]) -> R:
    """Call *fn*; a StopIteration of its own must not look like the end of something of ours."""
    try:
        return fn(items)
    except StopIteration as stop:
        raise RuntimeError(f"{fn!r} raised StopIteration") from stop
