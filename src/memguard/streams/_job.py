"""
What the sync and the async job have in common: arguments, admission of a chunk, and the books.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sized
from concurrent.futures import Executor
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from memguard.errors import ChunksRefusedError, MemoryCircuitBreakerError
from memguard.policy import ChunkSize
from memguard.settings import settings
from memguard.streams._chunked import check_budget, check_count
from memguard.streams._report import Account, ChunkReport
from memguard.units import ByteSize, format_bytes
from memguard.values import Gate, Hold, Progress, gate_of

T = TypeVar("T")
R = TypeVar("R")
OnPressure: TypeAlias = Literal["shrink", "wait", "partial", "raise"]
DEFAULT_CHUNK_SIZE = 10_000


class Stopped(Exception):  # noqa: N818 - not an error: the job ends early, with a report
    """No further chunk shall be started."""


class Job(Generic[R]):
    """One run over many items: sizes, the gate, the books."""

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
    ) -> None:
        if chunk_size is None:
            chunk_size = settings().chunk_size
        largest = check_count(DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size, "chunk_size")
        smallest = max(1, largest // 4)
        if min_chunk_size is not None:
            smallest = check_count(min_chunk_size, "min_chunk_size")
        if smallest > largest:
            raise ValueError(f"min_chunk_size={smallest} is above chunk_size={largest}")
        if on_pressure not in get_args(OnPressure):
            raise ValueError(f"on_pressure is one of {', '.join(get_args(OnPressure))}; got {on_pressure!r}")
        if total is None and isinstance(items, Sized):
            total = len(items)
        if total is not None and total < 0:
            raise ValueError(f"total is 0 items or more, got {total}")
        self.size = ChunkSize(largest, smallest, largest)
        self.budget = check_budget(max_bytes)
        self.gate = gate_of(breaker)
        self.account: Account[R] = Account(total, on_progress, on_result, time.monotonic)
        self._stop_when = stop_when
        self._on_pressure = on_pressure
        self.stopping = False

    @property
    def needed_bytes(self) -> int:
        """What the next chunk is about to need: its share of the byte budget, or nothing that is known."""
        return 0 if self.budget is None else self.budget * self.size.items // self.size.largest

    def ask(self) -> Hold | None:
        """
        Return what to hold while the next chunk runs, or None where asking was enough.

        Raises:
            MemoryCircuitBreakerError: It is refused.
        """
        self.account.saw(self.gate.check())
        return self.gate.reserve(self.needed_bytes) if self.budget is not None else None

    def refused(self, error: MemoryCircuitBreakerError) -> Hold | None:
        """
        Decide what to do about a refused chunk: return None to ask again, or what to wait for.

        Raises:
            Stopped: The job ends here, with what it has.
            MemoryCircuitBreakerError: The caller shall know.
        """
        if self._on_pressure == "raise":
            raise error
        if self._on_pressure == "wait":
            return self.gate.reserve(self.needed_bytes, timeout=None)
        if self._on_pressure == "partial":
            self.account.warnings.append(f"stopped after {self.account.items_done} items: {error}")
            raise Stopped
        smaller = self.size.refused()
        if smaller is None:
            raise ChunksRefusedError(error, self.account.report(complete=False)) from error
        if self.size.items == self.size.largest:
            self.account.warnings.append(
                f"chunks were made smaller than {self.size.largest} items: "
                f"{format_bytes(error.usage.used_bytes)} of {format_bytes(error.usage.limit_bytes)} in use"
            )
        self.size = smaller
        return None

    def finished(self, index: int, items: int, result: R) -> None:
        """Book a call of the function that returned."""
        self.account.done(index, items, result)
        if self._stop_when is not None and self._stop_when(result):
            self.stopping = True

    def chunk_over(self) -> None:
        """Note that a whole chunk is done, and tell."""
        self.size = self.size.done()
        self.account.tell(self.size.items, self.gate.level)

    def end(self, *, complete: bool) -> ChunkReport[R]:
        """Tell for the last time; return the report."""
        self.account.tell(self.size.items, self.gate.level, complete=complete, final=True)
        return self.account.report(complete=complete)


def held(hold: Hold | None) -> contextlib.AbstractContextManager[Any]:
    """Return a context that enters *hold* if there is one."""
    return contextlib.nullcontext() if hold is None else hold


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
