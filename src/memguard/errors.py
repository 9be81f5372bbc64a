"""
Every exception that memguard raises on purpose.

Numbers sit in ``args``, the sentence in ``__str__``: so an error survives the trip from a worker process.
"""

from __future__ import annotations

from typing import Any

from memguard.units import format_bytes
from memguard.values import MemoryUsage


class MemguardError(Exception):
    """The root of memguard's own exceptions."""


class SamplingError(MemguardError):
    """This machine does not give a figure that was asked for; the text says which and why."""


class MemoryCircuitBreakerError(MemguardError):
    """
    Raised in place of work that would not fit. Nothing was started.

    Attributes:
        usage: What the breaker saw when it decided. (``memory_usage`` is the same.)
        requested_bytes: What was asked for; 0 for a plain check.
        reserved_bytes: What others hold reserved.
        retry_after: Earliest useful moment to try again, in seconds from now; None where that is never.
        line_bytes: The line that use and reservations may not cross; None where it is not known.
    """

    def __init__(
        self,
        usage: MemoryUsage,
        requested_bytes: int = 0,
        reserved_bytes: int = 0,
        retry_after: float | None = 1.0,
        line_bytes: int | None = None,
    ) -> None:
        super().__init__(usage, requested_bytes, reserved_bytes, retry_after, line_bytes)
        self.usage = usage
        self.requested_bytes = requested_bytes
        self.reserved_bytes = reserved_bytes
        self.retry_after = retry_after
        self.line_bytes = line_bytes

    @property
    def memory_usage(self) -> MemoryUsage:
        """The same as :attr:`usage`."""
        return self.usage

    def __str__(self) -> str:
        usage = self.usage
        asked = f"{format_bytes(self.requested_bytes)} asked for, " if self.requested_bytes else ""
        held = f", {format_bytes(self.reserved_bytes)} held reserved by others" if self.reserved_bytes else ""
        line = f"; the line is {format_bytes(self.line_bytes)}" if self.line_bytes is not None else ""
        return (
            f"refused: {asked}{format_bytes(usage.used_bytes)} of {format_bytes(usage.limit_bytes)} "
            f"({usage.percent:.0f} %, {usage.source}) in use{held}{line}; {self._advice()}"
        )

    def _advice(self) -> str:
        if self.retry_after is None:
            return "this can never fit: ask for less, or raise the limit"
        return f"try again in {self.retry_after:.3g} s"


class ReservationTooLargeError(MemoryCircuitBreakerError):
    """
    What was asked for can never fit, whatever others give back: ``retry_after`` is None.

    To a client of a web service it is 413, not 503.
    """


class ChunksRefusedError(MemoryCircuitBreakerError):
    """
    Raised when memory has no room even for the smallest chunk. What was done is done.

    Attributes:
        report: A :class:`~memguard.ChunkReport` of what was done; go on at ``report.next_index``.
    """

    def __init__(self, cause: MemoryCircuitBreakerError, report: object) -> None:
        super().__init__(*cause.args)
        self.args = (cause, report)
        self.report: Any = report  # its type stands above this module

    def __str__(self) -> str:
        return f"{super().__str__()} (the smallest chunk was refused; see .report for what is done)"


class CacheDeadlockError(MemguardError):
    """
    A cached function needs a result that waits for its own.

    Attributes:
        function: The function's name.
        direct: Whether it called itself with the same arguments; else the circle goes through other threads or tasks.
    """

    def __init__(self, function: str, direct: bool) -> None:
        super().__init__(function, direct)
        self.function = function
        self.direct = direct

    def __str__(self) -> str:
        how = "called itself with the same arguments" if self.direct else "waits for a caller that waits for it"
        return f"{self.function} {how}: it would wait for its own result for ever"


class AssemblyError(MemguardError):
    """A file could not be put together; nothing was published."""


class MissingChunksError(AssemblyError):
    """
    Chunks have not arrived yet.

    Attributes:
        missing: Their indexes, from 0, in order.
    """

    def __init__(self, missing: tuple[int, ...]) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.missing[:10])) + (", ..." if len(self.missing) > 10 else "")
        return f"{len(self.missing)} chunks are missing: {shown}; send them, then finish again"


class ChecksumMismatchError(AssemblyError):
    """
    Data are not what they were said to be.

    Attributes:
        expected: What was said: ``"sha256:HEX"``.
        actual: What was found.
        index: Of the chunk or part, from 0; None for the whole file.
    """

    def __init__(self, expected: str, actual: str, index: int | None = None) -> None:
        super().__init__(expected, actual, index)
        self.expected = expected
        self.actual = actual
        self.index = index

    def __str__(self) -> str:
        what = "the file" if self.index is None else f"part {self.index}"
        return f"{what} has {self.actual}, expected {self.expected}; send it again"


class UploadConflictError(AssemblyError):
    """What was sent contradicts what is there: another size, or other bytes for a chunk that has arrived."""


class UploadNotFoundError(AssemblyError):
    """There is no such upload: never begun, aborted, or removed as stale."""


class UnsafeNameError(AssemblyError):
    """A name that a client sent would leave the directory, or mean something else on another platform."""


class InsufficientDiskError(AssemblyError):
    """
    The disk has no room for it.

    Attributes:
        needed_bytes: What it takes.
        free_bytes: What is free, less what is to stay free.
        path: Where.
    """

    def __init__(self, needed_bytes: int, free_bytes: int, path: str) -> None:
        super().__init__(needed_bytes, free_bytes, path)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.path = path

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.needed_bytes)} are needed in {self.path}, {format_bytes(self.free_bytes)} are free; "
            "free some, or write elsewhere"
        )
