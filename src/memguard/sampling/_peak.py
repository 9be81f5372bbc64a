"""
The peak of a block of code.

The kernel keeps one high-water mark for the whole process. To give each block its own, the mark is read and reset
whenever a block begins or ends, and what was read is folded into every block that was open: so blocks may nest and
overlap, in threads too. What other threads allocate meanwhile is part of the peak; nobody can tell it apart.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import tracemalloc
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

from memguard.sampling._files import KeptFile
from memguard.sampling._procfs import kilobytes

MeterName: TypeAlias = Literal["kernel", "tracemalloc", "sampled"]


class _Mark(Protocol):
    """A high-water mark that can be read and reset."""

    name: MeterName

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def read(self) -> tuple[int, int]:
        """Return (current, peak since the last reset) in bytes."""
        ...

    def reset(self) -> None: ...


class _KernelMark:
    """
    VmHWM, reset by writing 5 to clear_refs; exact, and costs microseconds.

    See:
        ``man 5 proc``, /proc/pid/clear_refs (since Linux 4.0).
    """

    name: MeterName = "kernel"

    def __init__(self) -> None:
        self._status = KeptFile(Path("/proc/self/status"))

    @staticmethod
    @functools.cache
    def works() -> bool:
        """
        Tell whether this kernel lets the process reset its mark; sandboxes may not.

        Asked once, before the first block: asking is resetting, which a block that is open would never hear of.
        """
        try:
            _reset_kernel_mark()
        except OSError:
            return False
        return True

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self._status.close()

    def read(self) -> tuple[int, int]:
        text = self._status.read()
        return kilobytes(text, b"VmRSS:") or 0, kilobytes(text, b"VmHWM:") or 0

    def reset(self) -> None:
        _reset_kernel_mark()


def _reset_kernel_mark() -> None:
    number = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(number, b"5")
    finally:
        os.close(number)


class _TracemallocMark:
    """What tracemalloc saw: Python's own allocations, exactly; C code that bypasses them, not at all."""

    name: MeterName = "tracemalloc"

    def __init__(self) -> None:
        self._started = False

    def start(self) -> None:
        self._started = not tracemalloc.is_tracing()
        if self._started:
            tracemalloc.start(1)

    def stop(self) -> None:
        if self._started:
            tracemalloc.stop()

    def read(self) -> tuple[int, int]:
        return tracemalloc.get_traced_memory()

    def reset(self) -> None:
        tracemalloc.reset_peak()


class _SampledMark:
    """The largest resident size that a thread happened to see; misses what lives between two looks."""

    name: MeterName = "sampled"
    _EVERY_SECONDS = 0.005

    def __init__(self) -> None:
        self._peak_bytes = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, name="memguard-peak", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        assert self._thread is not None, "it was started"
        self._thread.join()

    def read(self) -> tuple[int, int]:
        current = self._rss_bytes()
        self._peak_bytes = max(self._peak_bytes, current)
        return current, self._peak_bytes

    def reset(self) -> None:
        self._peak_bytes = 0

    def _watch(self) -> None:
        while not self._done.wait(self._EVERY_SECONDS):
            self._peak_bytes = max(self._peak_bytes, self._rss_bytes())

    @staticmethod
    def _rss_bytes() -> int:
        from memguard.sampling import _portable  # noqa: PLC0415 - psutil loads only where it is needed

        return _portable.process_bytes()[0]


class _Blocks:
    """The blocks that are open on one mark."""

    def __init__(self, mark: _Mark) -> None:
        self.mark = mark
        self._lock = threading.Lock()
        self._open: dict[PeakMeasurement, int] = {}

    def enter(self, block: PeakMeasurement) -> int:
        """Open *block*; return the bytes at its start."""
        with self._lock:
            if not self._open:
                self.mark.start()
            self._fold()
            current = self.mark.read()[0]
            self._open[block] = current
            return current

    def leave(self, block: PeakMeasurement) -> tuple[int, int]:
        """Close *block*; return (bytes now, its peak)."""
        with self._lock:
            current = self._fold()
            peak = self._open.pop(block)
            if not self._open:
                self.mark.stop()
            return current, peak

    def _fold(self) -> int:
        current, peak = self.mark.read()
        for block, seen in self._open.items():
            self._open[block] = max(seen, peak)
        self.mark.reset()
        return current


_all_blocks: dict[MeterName, _Blocks] = {}
_choice = threading.Lock()


def _reset_after_fork() -> None:
    # The child has none of the parent's threads: no block of theirs will ever close.
    global _choice  # noqa: PLW0603 - the lock may be held by a thread that no longer exists
    _choice = threading.Lock()
    _all_blocks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def _blocks_of(meter: MeterName | None) -> _Blocks:
    with _choice:
        name = meter or ("kernel" if _KernelMark.works() else "tracemalloc")
        if name not in _all_blocks:
            marks: dict[MeterName, type[_Mark]] = {
                "kernel": _KernelMark,
                "tracemalloc": _TracemallocMark,
                "sampled": _SampledMark,
            }
            _all_blocks[name] = _Blocks(marks[name]())
        return _all_blocks[name]


class PeakMeasurement:
    """
    A block of code and what it took, once it is over.

    Attributes:
        peak_bytes: The largest growth above the start, at any moment of the block.
        before_bytes: What the meter showed at the start.
        kept_bytes: What of the growth was still there at the end; negative where the block freed memory.
        meter: Who measured: ``"kernel"``, ``"tracemalloc"`` or ``"sampled"``.
        seconds: How long the block ran.
    """

    def __init__(self, meter: MeterName | None) -> None:
        self._blocks = _blocks_of(meter)
        self.meter: MeterName = self._blocks.mark.name
        self.peak_bytes = 0
        self.before_bytes = 0
        self.kept_bytes = 0
        self.seconds = 0.0
        self._began_at: float | None = None

    def __enter__(self) -> Self:
        if self._began_at is not None:
            raise RuntimeError("this measurement was used already; call measure_peak() for each block")
        self.before_bytes, self._began_at = self._blocks.enter(self), time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._began_at is None:
            raise RuntimeError("this measurement was never entered")
        self.seconds = time.monotonic() - self._began_at
        end_bytes, peak_bytes = self._blocks.leave(self)
        self.peak_bytes = max(0, peak_bytes - self.before_bytes)
        self.kept_bytes = end_bytes - self.before_bytes


def measure_cheaply() -> PeakMeasurement:
    """Measure by the kernel's mark, or by a thread that looks now and then where there is none; never tracemalloc."""
    return PeakMeasurement("kernel" if _KernelMark.works() else "sampled")


def measure_peak(*, meter: MeterName | None = None) -> PeakMeasurement:
    """
    Measure the peak of a block: ``with measure_peak() as peak: ...``, then ``peak.peak_bytes``.

    Blocks may nest and overlap. The figure is the process's: what other threads allocate meanwhile is in it.

    Args:
        meter: ``"kernel"`` reads the high-water mark of the resident size, exact, Linux only; ``"tracemalloc"`` counts
            Python's allocations, exact and slow; ``"sampled"`` looks at the resident size every 5 ms. None takes the
            kernel's where there is one, else tracemalloc.

    Raises:
        ValueError: *meter* is none of these, or the kernel does not let this process reset its mark.
    """
    if meter not in (None, "kernel", "tracemalloc", "sampled"):
        raise ValueError(f"no meter {meter!r}; there are 'kernel', 'tracemalloc' and 'sampled'")
    if meter == "kernel" and not _KernelMark.works():
        raise ValueError("the kernel here keeps no peak that can be reset; use 'tracemalloc' or 'sampled'")
    return PeakMeasurement(meter)
