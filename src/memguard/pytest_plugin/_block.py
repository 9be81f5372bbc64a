"""
A block of code under a budget: measured above the state at its start, and failed where it took more.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import pytest

from memguard.attribution import Snapshot, take_snapshot
from memguard.pytest_plugin._settle import hold_free_blocks, settle
from memguard.relief import Holes
from memguard.sampling import measure_peak
from memguard.units import ByteSize, format_bytes, parse_bytes

_NAMED_TYPES = 5
_NAMED_COUNT = 100
_NAMED_BYTES = 64 * 1024
_METERS = {
    "kernel": "the kernel's high-water mark of the resident size",
    "tracemalloc": "tracemalloc, which counts Python's allocations",
    "sampled": "looking at the resident size every 5 ms",
}


_Failed: Any = pytest.fail.Exception


class MemoryFailureError(AssertionError, _Failed):  # type: ignore[misc]
    """
    A test took more memory than it may.

    An AssertionError to whoever catches it; to pytest one that may do without a traceback.
    """

    def __init__(self, text: str, *, pytrace: bool) -> None:
        _Failed.__init__(self, text, pytrace)


class MemoryBudgetError(MemoryFailureError):
    """More than the budget."""

    __module__ = "builtins"  # as pytest's own: a summary shows the text, not where the class lives


def limit_of(size: ByteSize | None) -> int | None:
    """Return a limit in bytes; None is no limit."""
    return None if size is None else parse_bytes(size)


class MemoryBlock:
    """
    What a block took, once it is over. All sizes are bytes above the state at its start.

    Attributes:
        peak_bytes: The largest growth at any moment.
        kept_bytes: What of it was left at the end, after garbage was collected and free pages were given back;
            negative where the block freed memory.
        meter: Who measured: ``"kernel"``, ``"tracemalloc"`` or ``"sampled"``.
        seconds: How long it ran.
    """

    def __init__(
        self,
        what: str,
        peak_limit: int | None,
        kept_limit: int | None,
        *,
        name_types: bool = False,
        traceback: bool = True,
    ) -> None:
        self.peak_bytes = 0
        self.kept_bytes = 0
        self.seconds = 0.0
        self._what = what
        self._limits = peak_limit, kept_limit
        self._name_types = name_types
        self._traceback = traceback
        self._before: Snapshot | None = None
        self._peak, self._kept = measure_peak(), measure_peak()
        self.meter = self._peak.meter
        self._blocks: object = None
        self._holes = Holes()

    def __enter__(self) -> Self:
        # A budget pays for names of types and for exactness; a mere measurement of every test for neither.
        self._before = take_snapshot() if self._name_types else None
        settle()
        if self._name_types and self.meter == "kernel":
            self._holes.take()
            self._blocks = hold_free_blocks()
        self._kept.__enter__()
        self._peak.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        self._peak.__exit__(None, None, None)
        settle()
        self._kept.__exit__(None, None, None)
        self._blocks = None
        self._holes.release()
        self.peak_bytes, self.seconds = self._peak.peak_bytes, self._peak.seconds
        self.kept_bytes = self._kept.kept_bytes
        if error is None and (excess := self._excess()):
            raise MemoryBudgetError("\n".join([excess, *self._details()]), pytrace=self._traceback)

    def _excess(self) -> str:
        peak_limit, kept_limit = self._limits
        said = []
        if peak_limit is not None and self.peak_bytes > peak_limit:
            said.append(_over("a peak", self.peak_bytes, peak_limit))
        if kept_limit is not None and self.kept_bytes > kept_limit:
            said.append(_over("and kept" if said else "kept memory", self.kept_bytes, kept_limit))
        return f"{self._what} is over its memory budget: {', '.join(said)}" if said else ""

    def _details(self) -> list[str]:
        kept = format_bytes(self.kept_bytes)
        figures = (
            f"peak {format_bytes(self.peak_bytes)}, kept {kept}, in {self.seconds:.3f} s; "
            f"measured by {_METERS[self.meter]}"
        )
        if self._before is None:
            return [figures]
        left = grown_types(self._before, take_snapshot(), least=_NAMED_COUNT, least_bytes=_NAMED_BYTES)
        return [figures, *(left or ["nothing of it is left that could be named"])]


def _over(what: str, actual: int, limit: int) -> str:
    return f"{what} of {format_bytes(actual)}, the limit is {format_bytes(limit)} ({format_bytes(actual - limit)} over)"


def grown_types(older: Snapshot, newer: Snapshot, *, least: int = 1, least_bytes: int = 0) -> list[str]:
    """Return lines that name the types and containers that grew by *least* objects and *least_bytes*, or more."""
    report = newer.compare(older)
    # What the snapshots themselves hold is no growth: four dicts, and the numbers of the older ones.
    dicts = {id(each) for each in (older.counts, older.sizes, newer.counts, newer.sizes)}
    own = len(older.counts) + len(older.sizes)
    lines = [
        f"  {each.name}: {each.count:+,} to {each.now:,}, {format_bytes(each.size_bytes)} more"
        for each in report.types
        if each.count - own * (each.name == "builtins.int") >= least
        and each.size_bytes >= least_bytes
        and not each.name.startswith("memguard.attribution.")
    ][:_NAMED_TYPES]
    lines += [
        f"  {each.container.holder or each.container.type_name}: {each.count:+,} to {each.container.length:,} elements"
        for each in report.containers
        if each.count >= least and each.container.identity not in dicts
    ][:_NAMED_TYPES]
    return ["what there is more of now:", *lines] if lines else []
