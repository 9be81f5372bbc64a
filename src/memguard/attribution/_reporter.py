"""
Reports that come by themselves when a monitor finds a leak, or when somebody sends a signal.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from memguard.attribution._snapshot import GrowthReport, Snapshot, take_snapshot
from memguard.logs import log
from memguard.policy import LeakDetectionResult
from memguard.signals import Signal


class Watching(Protocol):
    """A monitor that tells of its verdicts."""

    @property
    def on_verdict(self) -> Signal[LeakDetectionResult]:
        """Fires when the verdict changes."""
        ...


class LeakReporter:
    """
    Says what grew, once *monitor* finds a leak.

    It counts types when it is made and again on a suspicion; on a leak it counts once more and reports the difference,
    in a thread of its own, at level WARNING.

    Args:
        monitor: A :class:`~memguard.MemoryMonitor`.
        trace_seconds: How long to trace allocations on a leak, for the lines behind it; 0 for not at all.
        on_report: Called with each report, beside the log.
    """

    def __init__(
        self,
        monitor: Watching,
        *,
        trace_seconds: float = 0.0,
        on_report: Callable[[GrowthReport], object] | None = None,
    ) -> None:
        if not trace_seconds >= 0:
            raise ValueError(f"trace_seconds is 0 or more, got {trace_seconds!r}")
        self._trace_seconds = trace_seconds
        self.on_report: Signal[GrowthReport] = Signal("memguard.on_report")
        """Tells of each report."""
        if on_report is not None:
            self.on_report.connect(on_report)
        self._before = take_snapshot()
        self._thread: threading.Thread | None = None
        self._disconnect = monitor.on_verdict.connect(self._hear)

    def close(self) -> None:
        """Report no more; waits for a report that is being made."""
        self._disconnect()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _hear(self, result: LeakDetectionResult) -> None:
        if result.verdict == "suspect":
            self._before = take_snapshot()
        elif result.detected and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._report, name="memguard-report", daemon=True)
            self._thread.start()

    def _report(self) -> None:
        after = take_snapshot(trace_seconds=self._trace_seconds)
        report = after.compare(self._before)
        self._before = after
        log.warning("memguard: what grew\n%s", report)
        self.on_report.announce(report)


def report_on_signal(
    number: int | None = None, *, write: Callable[[str], object] | None = None, trace_seconds: float = 0.0
) -> Callable[[], None]:
    """
    Write what grew since the last time, whenever this process gets a signal: ``kill -USR2 PID``.

    The report is made in a thread; the first compares with the moment of this call.

    Args:
        number: The signal; SIGUSR2 if None.
        write: Takes the text; None logs it at level WARNING.
        trace_seconds: How long to trace allocations for each report.

    Returns:
        A function that puts the former handler back.

    Raises:
        ValueError: Not called in the main thread, or there is no SIGUSR2 here and no *number* was given.
    """
    wanted = getattr(signal, "SIGUSR2", None) if number is None else number
    if wanted is None:
        raise ValueError("there is no SIGUSR2 on this platform; pass the number of another signal")
    tell = _log_text if write is None else write
    last = [take_snapshot()]
    busy = threading.Lock()

    def report() -> None:
        with busy:
            before: Snapshot = last[0]
            last[0] = take_snapshot(trace_seconds=trace_seconds)
            tell(str(last[0].compare(before)))

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        threading.Thread(target=report, name="memguard-report", daemon=True).start()

    former: Any = signal.signal(wanted, handle)

    def restore() -> None:
        signal.signal(wanted, former)

    return restore


def _log_text(text: str) -> None:
    log.warning("memguard: what grew\n%s", text)
