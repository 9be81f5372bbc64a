"""
One relief: the steps in order, each measured; not twice at once, and not more often than it helps.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from memguard.relief._allocator import trim
from memguard.sampling import memory_usage
from memguard.units import format_bytes

Step: TypeAlias = tuple[str, Callable[[], object]]

_USEFUL_BYTES = 1024 * 1024
_PAUSE_TIMES = 20
"""A relief that helped may cost a twentieth of the time."""
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ReliefStep:
    """What one step gave back, in bytes, and took, in seconds."""

    name: str
    freed_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ReliefReport:
    """
    What a relief did.

    Attributes:
        steps: Each step in order.
        before_bytes: In use when it began.
        after_bytes: In use when it ended.
        seconds: How long it took.
    """

    steps: tuple[ReliefStep, ...]
    before_bytes: int
    after_bytes: int
    seconds: float

    @property
    def freed_bytes(self) -> int:
        """What it gave back in all; negative where others took more meanwhile."""
        return self.before_bytes - self.after_bytes

    def __str__(self) -> str:
        steps = ", ".join(f"{step.name} {format_bytes(step.freed_bytes)}" for step in self.steps)
        return f"gave back {format_bytes(self.freed_bytes)} in {self.seconds:.3f} s ({steps or 'no steps'})"


def default_steps(*, collect: bool = True) -> tuple[Step, ...]:
    """Return the steps there are: garbage first, since only what is free can be trimmed."""
    steps: tuple[Step, ...] = (("trim", trim),)
    return (("collect", gc.collect), *steps) if collect else steps


def run_steps(steps: Sequence[Step], read: Callable[[], int], clock: Callable[[], float]) -> ReliefReport:
    """Run *steps*; *read* returns the bytes in use."""
    before = now = read()
    began = at = clock()
    done = []
    for name, step in steps:
        step()
        after, then = read(), clock()
        done.append(ReliefStep(name, now - after, then - at))
        now, at = after, then
    return ReliefReport(tuple(done), before, now, at - began)


def release_memory() -> ReliefReport:
    """
    Give back what can be given back, now: collect garbage, then return the allocator's free pages.

    Takes milliseconds to seconds, in which a garbage collection holds the GIL. Freed bytes are of the resident size.
    """
    return run_steps(default_steps(), lambda: memory_usage().rss_bytes, time.monotonic)


class Relief:
    """
    Relief on demand, one at a time.

    After one that helped there is a pause of 20 times its own duration; after a useless one of 5 s, doubled up to 30.

    Args:
        steps: What to do, in order.
        clock: Seconds, monotonic.
    """

    def __init__(self, steps: Sequence[Step], clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = tuple(steps)
        self._clock = clock
        self._running = threading.Lock()
        self._runner: int | None = None
        self._due_at: float | None = None
        self._pause_seconds = 0.0
        self.runs = 0
        self.freed_bytes = 0

    @property
    def due(self) -> bool:
        """Whether a relief would run now."""
        return bool(self._steps) and (self._due_at is None or self._clock() >= self._due_at)

    def attempt(self, read: Callable[[], int]) -> bool:
        """
        Run the steps if they are due; wait for one that another thread is at.

        Returns:
            Whether a relief ended during the call: a new reading is worth taking.
        """
        # A finalizer that the collection runs may ask again, in this same thread.
        if not self.due or self._runner == threading.get_ident():
            return False
        alone = self._running.acquire(blocking=False)
        if not alone:
            with self._running:
                return True
        try:
            self._runner = threading.get_ident()
            self._note(run_steps(self._steps, read, self._clock))
        finally:
            self._runner = None
            self._running.release()
        return True

    def _note(self, report: ReliefReport) -> None:
        self.runs += 1
        self.freed_bytes += max(0, report.freed_bytes)
        if report.freed_bytes >= max(_USEFUL_BYTES, report.before_bytes // 100):
            self._pause_seconds = 0.0
            self._due_at = self._clock() + _PAUSE_TIMES * report.seconds
            return
        longer = max(_FIRST_PAUSE_SECONDS, self._pause_seconds * 2)
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, longer)
        self._due_at = self._clock() + self._pause_seconds
