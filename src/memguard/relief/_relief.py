"""
One relief: the steps in order, each measured; not twice at once, and not more often than it helps.

A relief may be asked for from anywhere: by a finalizer that the collection in it runs, by a signal handler that
interrupts it. Whoever asks waits for another thread's at most, and not for ever. What fails in it is logged, and the
rest goes on: who asked wants room, not an error.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memguard.errors import SamplingError
from memguard.interrupts import is_interrupt
from memguard.logs import log
from memguard.relief._allocator import trim
from memguard.relief._shrinking import Shrinkables, shrinkables
from memguard.relief._tops import tops
from memguard.sampling import heap_counts, memory_usage, resident_bytes
from memguard.turns import Claim, Turn
from memguard.units import format_bytes

_USEFUL_BYTES = 1024 * 1024
_WORTH_BYTES = 8 * 1024**2
_LONGEST_REST_SECONDS = 0.25
_TIDY_PAUSE_SECONDS = 10.0
_PAUSE_TIMES = 20
"""A relief that helped may cost a twentieth of the time."""
_LONGEST_WAIT_SECONDS = 2.0
"""For a relief that another thread is at. That may itself wait for something that we hold, unknown to both."""


class Step(NamedTuple):
    """
    One way to give memory back.

    Attributes:
        name: Stands in reports.
        act: Does it.
        first_pause_seconds: How long to wait after it was of no use, doubled each time.
        longest_pause_seconds: And not longer than this.
        worth: Tells how many bytes it may give back, at most. Where it is given it is asked instead of waiting: the
            step runs again once there are 8 MiB more than the last run left.
        costs: Whether what it gives back was of use to somebody, as cached values are: then it is not for tidying up,
            and what the last run left is there to be given.
    """

    name: str
    act: Callable[[], object]
    first_pause_seconds: float = 5.0
    longest_pause_seconds: float = 30.0
    worth: Callable[[], int] | None = None
    costs: bool = False


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
    """Return the steps there are: garbage first, since only what is free can be given back."""
    steps = (Step("trim", trim, worth=_free_bytes), Step("tops", tops.give_back, worth=_free_bytes))
    return (Step("collect", gc.collect), *steps) if collect else steps


def _free_bytes() -> int:
    counts = heap_counts()
    if counts is None:
        return 0
    try:
        return counts.kept_bytes(memory_usage().anon_bytes)
    except SamplingError:
        return counts.free_bytes


def _answer(what: str, ask: Callable[[], int], otherwise: int) -> int:
    """Return what *ask* tells; *otherwise* where it raises, which is logged once: it may be asked all the time."""
    try:
        return ask()
    except Exception as error:
        if is_interrupt(error):
            raise
        if what not in _failed:
            _failed.add(what)
            log.exception("memguard: %s failed; relief goes on", what)
        return otherwise


_failed: set[str] = set()


def run_steps(steps: Sequence[Step], read: Callable[[], int], clock: Callable[[], float]) -> ReliefReport:
    """Run *steps*; *read* returns the bytes in use. One that raises is logged, and gave nothing back."""
    before = now = _answer("reading what is in use", read, 0)
    began = at = clock()
    done = []
    for step in steps:
        try:
            step.act()
        except Exception as error:
            if is_interrupt(error):
                raise
            log.exception("memguard: the relief step %r failed; the others go on", step.name)
        after, then = _answer("reading what is in use", read, now), clock()
        done.append(ReliefStep(step.name, now - after, then - at))
        now, at = after, then
    return ReliefReport(tuple(done), before, now, at - began)


def release_memory(*, caches: float = 0.5) -> ReliefReport:
    """
    Give back what can be given back, now: shrink caches, collect garbage, then return the allocator's free pages.

    Takes milliseconds to seconds, in which a garbage collection holds the GIL. Freed bytes are of the resident size.

    Args:
        caches: The part of what caches hold that they shall drop, the least useful first; 0.0 leaves them alone.

    Raises:
        ValueError: *caches* is not within 0 to 1.
    """
    if not 0 <= caches <= 1:
        raise ValueError(f"caches is a part, 0 to 1, got {caches!r}")

    def shrink() -> int:
        return shrinkables.shrink(round(shrinkables.shrinkable_bytes() * caches))

    steps = (Step("caches", shrink), *default_steps())
    return run_steps(steps, resident_bytes, time.monotonic)


@dataclass(slots=True)
class _Throttle:
    """When one step may run again."""

    step: Step
    rested_at: float = float("-inf")
    due_at: float = float("-inf")
    pause_seconds: float = 0.0
    left_bytes: int = 0

    def is_due(self, now: float) -> bool:
        if now < self.rested_at:
            return False
        if now >= self.due_at:
            return True
        return self.step.worth is not None and self.worth_bytes() >= self.left_bytes + _WORTH_BYTES

    def worth_bytes(self) -> int:
        worth = self.step.worth
        return 0 if worth is None else _answer(f"asking what {self.step.name!r} may give back", worth, 0)

    def ran(self, now: float, seconds: float, *, useful: bool) -> None:
        rest = _PAUSE_TIMES * seconds
        if self.step.costs and useful:
            rest = 0.0  # as long as caches hold something, nobody has to be refused
        elif self.step.worth is not None:
            # It knows that there is something. Beside busy threads most of its time was theirs.
            rest = min(rest, _LONGEST_REST_SECONDS)
        self.rested_at = self.due_at = now + rest
        self.left_bytes = 0 if self.step.costs else self.worth_bytes()
        if useful:
            self.pause_seconds = 0.0
            return
        longer = max(self.step.first_pause_seconds, self.pause_seconds * 2)
        self.pause_seconds = min(self.step.longest_pause_seconds, longer)
        self.due_at = max(self.due_at, now + self.pause_seconds)


class Relief:
    """
    Relief on demand, one at a time.

    Each step pauses for 20 times its own duration at least; after a useless relief for a time of the step's own, which
    doubles, unless it tells that there is more to give back.

    Args:
        steps: What to do, in order.
        clock: Seconds, monotonic.
        caches: Made smaller before that, by what is wanted; None for none.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        clock: Callable[[], float] = time.monotonic,
        *,
        caches: Shrinkables | None = None,
    ) -> None:
        self._wanted_bytes = self._given_bytes = 0
        self._caches = caches
        if caches is not None:
            steps = (Step("caches", self._shrink, worth=caches.shrinkable_bytes, costs=True), *steps)
        self._throttles = tuple(_Throttle(step) for step in steps)
        self._clock = clock
        self._turn = Turn()
        self._tidy_at = float("-inf")
        self.runs = 0
        self.freed_bytes = 0

    @property
    def due(self) -> bool:
        """Whether a relief would run now."""
        now = self._clock()
        return any(throttle.is_due(now) for throttle in self._throttles)

    def caches_hold_bytes(self) -> bool:
        """Tell whether there are caches that can be made smaller."""
        return self._caches is not None and self._caches.shrinkable_bytes() > 0

    @property
    def tidy_due(self) -> bool:
        """Whether a tidying would run now: steps that tell what they are worth, ten seconds after the last."""
        now = self._clock()
        return now >= self._tidy_at and any(each.is_due(now) for each in self._throttles if _tidies(each.step))

    def attempt(
        self, read: Callable[[], int], *, wanted: Callable[[int], int] | None = None, tidy: bool = False
    ) -> bool:
        """
        Run the steps that are due; wait for one that another thread is at, for two seconds at most.

        Args:
            read: Returns the bytes in use.
            wanted: Returns how many bytes are too many, of those in use; caches are asked for so many. None: none.
            tidy: Run only those that tell what they are worth and cost nobody anything.

        Returns:
            Whether a relief ended during the call: a new reading is worth taking. False in a finalizer or signal
            handler that interrupts a relief of the same thread.
        """
        if not self.due:
            return False
        claim = Claim(self._turn)
        try:
            if claim.take():
                self._run(read, wanted, tidy=tidy)
                return True
        finally:
            claim.give_back()
        return self._turn.wait(_LONGEST_WAIT_SECONDS)

    def _run(self, read: Callable[[], int], wanted: Callable[[int], int] | None, *, tidy: bool) -> None:
        now = self._clock()
        due = [each for each in self._throttles if each.is_due(now) and (_tidies(each.step) or not tidy)]
        self._wanted_bytes = 0
        if wanted is not None:
            self._wanted_bytes = max(0, _answer("asking how much is too much", lambda: wanted(read()), 0))
        if not self._wanted_bytes:
            # Not asked, caches are not found useless: the next who asks shall not have to wait.
            due = [each for each in due if not each.step.costs]
        if due:
            self._note(due, run_steps([throttle.step for throttle in due], read, self._clock))

    def _shrink(self) -> None:
        self._given_bytes = 0 if self._caches is None else self._caches.shrink(self._wanted_bytes)
        if self._given_bytes:
            # Values of some kilobytes leave pages that only this gives back, whenever it ran last.
            trim()
            if _free_bytes() >= _WORTH_BYTES:
                tops.give_back()

    def _note(self, throttles: Sequence[_Throttle], report: ReliefReport) -> None:
        self.runs += 1
        self.freed_bytes += max(0, report.freed_bytes)
        now = self._clock()
        self._tidy_at = now + _TIDY_PAUSE_SECONDS
        # As a whole: what a collection frees is given back by the steps after it.
        useful = report.freed_bytes >= max(_USEFUL_BYTES, report.before_bytes // 100)
        for throttle, done in zip(throttles, report.steps, strict=True):
            # What caches gave was of use even if others have taken it meanwhile, or the pages are not empty yet.
            gave = throttle.step.costs and self._given_bytes > 0
            throttle.ran(now, done.seconds, useful=useful or gave)


def _tidies(step: Step) -> bool:
    return step.worth is not None and not step.costs
