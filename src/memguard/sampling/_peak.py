"""
The peak of a block of code.

The kernel keeps one high-water mark for the whole process. To give each block its own, the mark is read and reset
whenever a block begins or ends, and what was read is noted (:mod:`memguard.sampling._notes`); the peak of a block is
the largest note since it began. So blocks may nest and overlap, in threads too. What other threads allocate meanwhile
is part of the peak; nobody can tell it apart.

A block may begin or end anywhere: in a finalizer or a signal handler that interrupts another block's beginning, in a
thread that is killed, in a forked child. So nothing here waits, and a block that dies without having ended is
forgotten.
"""

from __future__ import annotations

import errno
import itertools
import threading
import time
import weakref
from _thread import start_new_thread
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

from memguard.forking import forget_in_child
from memguard.logs import log
from memguard.sampling._files import KeptFile, write_once
from memguard.sampling._notes import Notes
from memguard.sampling._procfs import kilobytes, resident_bytes
from memguard.turns import Bell

MeterName: TypeAlias = Literal["kernel", "tracemalloc", "sampled"]
_CLEAR_REFS = Path("/proc/self/clear_refs")  # made once: to make one takes as long as to write the file
_LASTING = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOSYS})
"""What will be refused again: no such file, no right to it. All else may pass, as a want of descriptors does."""


class _Mark(Protocol):
    """A high-water mark that can be read and reset. Each method may be called again and again, from anywhere."""

    name: MeterName

    def start(self) -> None:
        """Be ready to be read, from now on."""
        ...

    def stop(self) -> None:
        """Leave nothing behind; nobody reads any more."""
        ...

    def read(self) -> tuple[int, int]:
        """Return (current, peak since the last reset) in bytes."""
        ...

    def reset(self) -> None:
        """Begin a new peak."""
        ...

    def forget_threads(self) -> None:
        """Begin anew in a forked child."""
        ...


class _KernelMark:
    """
    VmHWM, reset by writing 5 to clear_refs; exact, and costs microseconds.

    See:
        ``man 5 proc``, /proc/pid/clear_refs (since Linux 4.0). It belongs to root once the process is not dumpable, as
        after a change of user (``man 2 prctl``, PR_SET_DUMPABLE).
    """

    name: MeterName = "kernel"
    _known: bool | None = None

    def __init__(self) -> None:
        self._status = KeptFile(Path("/proc/self/status"))

    @classmethod
    def works(cls) -> bool:
        """
        Tell whether this kernel lets the process reset its mark; sandboxes may not.

        Asked once, before the first block: asking is resetting, which a block that is open would never hear of.
        """
        if cls._known is None:
            try:
                cls._reset()
                cls._known = True
            except OSError:
                return False
        return cls._known

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def read(self) -> tuple[int, int]:
        text = self._status.read()
        current, peak = kilobytes(text, b"VmRSS:"), kilobytes(text, b"VmHWM:")
        if current is None or peak is None:
            raise OSError(errno.ENODATA, "it does not tell VmRSS and VmHWM", str(self._status.path))
        return current, peak

    def reset(self) -> None:
        self._reset()

    def forget_threads(self) -> None:
        pass

    @classmethod
    def _reset(cls) -> None:
        try:
            write_once(_CLEAR_REFS, b"5")
        except OSError as error:
            if error.errno in _LASTING:
                cls._known = False
            raise


class _TracemallocMark:
    """What tracemalloc saw: Python's own allocations, exactly; C code that bypasses them, not at all."""

    name: MeterName = "tracemalloc"

    def __init__(self) -> None:
        import tracemalloc  # noqa: PLC0415 - an interpreter beside the main one may refuse it

        self._module = tracemalloc
        self._ours = False
        self._last = (0, 0)

    def start(self) -> None:
        if not self._module.is_tracing():
            self._ours = True
            self._module.start(1)

    def stop(self) -> None:
        if self._ours:
            self._module.stop()
            self._ours = False

    def read(self) -> tuple[int, int]:
        if self._module.is_tracing():
            self._last = self._module.get_traced_memory()
        return self._last  # somebody else stopped it: nothing more is known

    def reset(self) -> None:
        self._module.reset_peak()

    def forget_threads(self) -> None:
        pass


class _SampledMark:
    """The largest resident size that a thread happened to see; misses what lives between two looks."""

    name: MeterName = "sampled"
    _EVERY_SECONDS = 0.005

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._end: Bell | None = None
        # One cell for each peak: a thread that looked before a reset writes into the old one.
        self._peak = [0]

    def start(self) -> None:
        end, first = Bell(), False
        with self._lock:
            if self._end is None:
                self._end = end
                first = True
        if not first:
            return
        try:
            # Not a threading.Thread, whose start takes a lock and waits: this may be a finalizer inside of that lock.
            start_new_thread(self._watch, (end,))
        except RuntimeError as error:
            # No thread more may be started: then only beginnings and ends of blocks are seen.
            self.stop()
            log.debug("memguard: peaks are seen at the ends of blocks only: %s", str(error))
        except BaseException:  # of a signal handler
            self.stop()
            raise

    def stop(self) -> None:
        with self._lock:
            end, self._end = self._end, None
        if end is not None:
            end.ring()  # not waited for: this may be the watching thread itself, in a finalizer

    def read(self) -> tuple[int, int]:
        current = resident_bytes()
        return current, max(self._peak[0], current)

    def reset(self) -> None:
        self._peak = [0]

    def forget_threads(self) -> None:
        self._lock = threading.RLock()
        self._end = None

    def _watch(self, end: Bell) -> None:
        # An exception may come between the two steps of stop(): whoever is not the one any more ends by itself.
        while self._end is end and not end.wait(self._EVERY_SECONDS):
            cell, current = self._peak, resident_bytes()
            cell[0] = max(cell[0], current)


class _Blocks:
    """The blocks that are open on one mark, by number."""

    def __init__(self, mark: _Mark) -> None:
        self.mark = mark
        self._notes = Notes()
        self._open: dict[int, weakref.ref[PeakMeasurement]] = {}
        # Notes and beginnings of blocks, in one order.
        self._tickets = itertools.count(1)
        self._newest = 0
        forget_in_child(self)

    def enter(self, block: PeakMeasurement) -> int:
        """
        Open *block*; return the bytes at its start.

        Raises:
            OSError: This mark cannot be read or reset now; nothing was opened.
        """
        number = next(self._tickets)

        def prune(_: object) -> None:
            self._close(number)

        self._open[number] = weakref.ref(block, prune)
        try:
            self.mark.start()
            current = self._fold()
            self.mark.reset()
            # After the reset: nothing that was noted before is this block's.
            block._number, block._since = number, next(self._tickets)
            self._newest = max(self._newest, block._since)
        except BaseException:
            self._close(number)
            raise
        return current

    def leave(self, block: PeakMeasurement) -> tuple[int | None, int]:
        """
        Close *block*; return (bytes now, the most that was noted since it began).

        The bytes now are None where this mark cannot be read any more.
        """
        current: int | None = None
        try:
            current = self._fold()
            self.mark.reset()
        except OSError as error:
            # A mark that cannot be reset is right all the same to whatever is open: that has begun before.
            log.debug("memguard: %r could not be read or reset at the end of a block: %s", self.mark.name, str(error))
        try:
            return current, self._notes.highest(block._since)
        finally:
            self._close(block._number)

    def lap(self, block: PeakMeasurement) -> tuple[int, int]:
        """
        Return (bytes now, the most that was noted since *block* began or had its last lap), and begin its next one.

        Raises:
            OSError: This mark cannot be read or reset now.
        """
        current = self._fold()
        self.mark.reset()
        highest = self._notes.highest(block._since)
        block._since = next(self._tickets)
        self._newest = max(self._newest, block._since)
        return current, max(highest, current)

    def _fold(self) -> int:
        """Read the mark and note it; return the bytes now."""
        while True:
            ticket = next(self._tickets)
            current, peak = self.mark.read()
            self._notes.add(ticket, peak, len(self._open), self._beginnings)
            if self._newest < ticket:
                return current
            # A block began since: what it has seen until now may stand before its beginning. Once more, behind it.

    def _beginnings(self) -> list[int]:
        """Return since when the open blocks want to know peaks, in order."""
        blocks = [reference() for reference in list(self._open.values())]
        return sorted(block._since for block in blocks if block is not None)

    def _close(self, number: int) -> None:
        self._open.pop(number, None)
        self._drop_dead()
        if self._open:
            return
        self._notes.clear()
        self.mark.stop()
        if self._open:  # somebody came in between
            self.mark.start()

    def _drop_dead(self) -> None:
        """Forget the oldest blocks as far as they died: an exception of a signal handler may end a finalizer early."""
        while True:
            try:
                number, reference = next(iter(self._open.items()))
            except (StopIteration, RuntimeError):  # none, or somebody came in between
                return
            if reference() is not None:
                return
            self._open.pop(number, None)

    def _forget_threads(self) -> None:
        self._notes.forget_threads()
        self.mark.forget_threads()
        here = threading.get_ident()
        for number, reference in list(self._open.items()):
            block = reference()
            if block is None or block._thread != here:  # it will never end
                self._close(number)


_MARKS: dict[MeterName, type[_Mark]] = {
    "kernel": _KernelMark,
    "tracemalloc": _TracemallocMark,
    "sampled": _SampledMark,
}
_all_blocks: dict[MeterName, _Blocks] = {}


def _blocks_of(name: MeterName) -> _Blocks:
    found = _all_blocks.get(name)
    return _all_blocks.setdefault(name, _Blocks(_MARKS[name]())) if found is None else found


class PeakMeasurement:
    """
    A block of code and what it took, once it is over.

    Attributes:
        peak_bytes: The largest growth above the start, at any moment of the block.
        before_bytes: What the meter showed at the start.
        kept_bytes: What of the growth was still there at the end; negative where the block freed memory.
        meter: Who measured: ``"kernel"``, ``"tracemalloc"`` or ``"sampled"``. Another one than before where the first
            refused: at the start, then all is the other's, or at the end, then it is ``"sampled"``: what was seen when
            this and other blocks began and ended.
        seconds: How long the block ran.
    """

    def __init__(self, *meters: MeterName) -> None:
        self._meters = meters
        self._blocks: _Blocks | None = None
        self.meter: MeterName = meters[0]
        self.peak_bytes = 0
        self.before_bytes = 0
        self.kept_bytes = 0
        self.seconds = 0.0
        self._number = self._since = 0  # whose it is: that of the blocks
        self._thread = 0
        self._began_at: float | None = None

    def __enter__(self) -> Self:
        if self._began_at is not None:
            raise RuntimeError("this measurement was used already; call measure_peak() for each block")
        self._thread = threading.get_ident()
        self.before_bytes = self._enter()
        self._began_at = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._began_at is None or self._blocks is None:
            raise RuntimeError("this measurement was never entered")
        self.seconds = time.monotonic() - self._began_at
        end_bytes, peak_bytes = self._blocks.leave(self)
        if end_bytes is None:
            self.meter = "sampled"
            end_bytes = resident_bytes() or self.before_bytes
        self.peak_bytes = max(0, max(peak_bytes, end_bytes) - self.before_bytes)
        self.kept_bytes = end_bytes - self.before_bytes

    def lap(self) -> tuple[int, int]:
        """
        Return (bytes now, the most since the block began or since its last lap): resident, not growth.

        Raises:
            OSError: The meter refuses to be read now.
        """
        if self._blocks is None:
            raise RuntimeError("this measurement was never entered")
        return self._blocks.lap(self)

    def _enter(self) -> int:
        for meter in self._meters:
            try:
                self._blocks = _blocks_of(meter)
                before = self._blocks.enter(self)
            except (ImportError, OSError) as trouble:
                log.debug("memguard: a block is not measured by %r: %s", meter, str(trouble))
                continue
            self.meter = meter
            return before
        return 0  # the last one always answers


def measure_cheaply() -> PeakMeasurement:
    """Measure by the kernel's mark, or by a thread that looks now and then where there is none; never tracemalloc."""
    return PeakMeasurement("kernel", "sampled") if _KernelMark.works() else PeakMeasurement("sampled")


def measure_peak(*, meter: MeterName | None = None) -> PeakMeasurement:
    """
    Measure the peak of a block: ``with measure_peak() as peak: ...``, then ``peak.peak_bytes``.

    Blocks may nest and overlap. The figure is the process's: what other threads allocate meanwhile is in it.

    Args:
        meter: ``"kernel"`` reads the high-water mark of the resident size, exact, Linux only; ``"tracemalloc"`` counts
            Python's allocations, exact and slow; ``"sampled"`` looks at the resident size every 5 ms. None takes the
            kernel's where there is one, else tracemalloc. One that refuses while the process runs, as the kernel may
            after a change of user, gives way to the next: see :attr:`PeakMeasurement.meter`.

    Raises:
        ValueError: *meter* is none of these, or the kernel does not let this process reset its mark.
    """
    if meter not in (None, "kernel", "tracemalloc", "sampled"):
        raise ValueError(f"no meter {meter!r}; there are 'kernel', 'tracemalloc' and 'sampled'")
    if meter == "kernel" and not _KernelMark.works():
        raise ValueError("the kernel here keeps no peak that can be reset; use 'tracemalloc' or 'sampled'")
    if meter == "sampled":
        return PeakMeasurement("sampled")
    if meter == "tracemalloc" or not _KernelMark.works():
        return PeakMeasurement("tracemalloc", "sampled")
    return PeakMeasurement("kernel", "tracemalloc", "sampled")
