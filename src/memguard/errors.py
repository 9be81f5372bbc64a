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
        retry_after: Earliest useful moment to try again, in seconds from now.
        line_bytes: The line that use and reservations may not cross; None where it is not known.
    """

    def __init__(
        self,
        usage: MemoryUsage,
        requested_bytes: int = 0,
        reserved_bytes: int = 0,
        retry_after: float = 1.0,
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
        if self.line_bytes is not None and self.requested_bytes > self.line_bytes:
            return "this can never fit: ask for less, or raise the limit"
        return f"try again in {self.retry_after:.3g} s"


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
