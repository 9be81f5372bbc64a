"""
The breaker that people hold: one object that reads, decides, relieves and answers.

No thread watches: whoever finds the reading stale takes the next one. One is started only to give memory back where
the caller must not be held up by it, and ends with that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast, overload

from memguard.breaker._admission import Admission
from memguard.breaker._config import BreakerMode, Config, check_clock, make_config
from memguard.breaker._desk import MANY, Desk
from memguard.breaker._guarding import Cost, wrap
from memguard.breaker._learning import Gate, LearnedCost, Record, Room
from memguard.breaker._queue import Queue
from memguard.breaker._readings import BreakerChange, Readings
from memguard.breaker._relieving import Relieving
from memguard.breaker._reservation import Reservation, lent_around
from memguard.breaker._statistics import BreakerStatistics
from memguard.forking import forget_in_child
from memguard.logs import log
from memguard.policy import State, cost_bytes, is_overrun
from memguard.relief import Relief, default_steps, held_free_bytes, shrinkables
from memguard.sampling import Sampler
from memguard.settings import settings
from memguard.signals import Signal, contained
from memguard.units import ByteSize, Threshold, format_bytes
from memguard.values import Level, MemoryUsage
from memguard.wrapping import kind_of

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_OPEN_AT = "80%"
"""Refuse new work. The fifth that is left pays for what grows between two readings."""
DEFAULT_CHECK_INTERVAL = 1.0
_AT_ONCE = 0.0
_SUSTAINED_SECONDS = 10.0
"""Open for so long, it is no moment of pressure: a balancer may send requests elsewhere."""


@dataclass(frozen=True, slots=True)
class CostOverrun:
    """
    A call of a guarded function took clearly more than it had reserved: half as much again, and 4 MiB.

    Attributes:
        function: Its name.
        booked_bytes: What it had reserved.
        peak_bytes: What it was seen to take.
    """

    function: str
    booked_bytes: int
    peak_bytes: int


class MemoryCircuitBreaker:
    """
    Refuses work that would not fit, before it starts.

    Args:
        open_at: Open here: a fraction up to 1.0, ``"80%"``, or a size.
        close_at: Close again below this; 15/16 of *open_at* if None.
        warn_at: The level is WARNING from here; 7/8 of *open_at* if None.
        limit: A limit of your own, held against this process, beside those of the kernel.
        check_interval: Seconds for which a reading is good at most; less while little is left.
        relief: Whether to collect garbage and return free pages before refusing.
        mode: ``"enforce"`` refuses, ``"observe"`` only counts what it would refuse, and logs openings;
            ``"off"`` lets everything pass, and neither reads, counts, logs nor relieves for it.
        name: Stands in log records.
        sampler: Takes the readings; None reads this machine.
        clock: Seconds, monotonic.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument cannot be meant.
    """

    def __init__(
        self,
        *,
        open_at: Threshold = DEFAULT_OPEN_AT,
        close_at: Threshold | None = None,
        warn_at: Threshold | None = None,
        limit: ByteSize | None = None,
        check_interval: float = DEFAULT_CHECK_INTERVAL,
        relief: bool = True,
        mode: BreakerMode = "enforce",
        name: str = "memguard",
        sampler: Sampler | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = make_config(
            open_at=open_at,
            close_at=close_at,
            warn_at=warn_at,
            limit=limit,
            check_interval=check_interval,
            relief=relief,
            mode=mode,
            sampler=sampler,
        )
        self._desk = Desk(check_clock(clock))
        self._readings = Readings(self._desk, config, name)
        self._queue = Queue(self._desk, self._readings)
        self._readings.running_bytes = self._queue.running_bytes
        self._relieving = Relieving(self._desk, self._readings, self._queue, _relief(config, clock))
        self._readings.on_idle = self._relieving.tidy
        self._admission = Admission(self._desk, self._readings, self._queue, self._relieving)
        self._records: dict[str, Record] = {}
        self._gate = Gate(self._room)
        self._gate.on_overrun = self._tell_overrun
        self._on_overrun: Signal[CostOverrun] = Signal(f"{name}.on_overrun")
        forget_in_child(self)

    # ----- asking

    def check(self) -> MemoryUsage:
        """
        Return the reading that new work may go by.

        On an event loop's thread relief is scheduled in another thread, not run.

        Raises:
            MemoryCircuitBreakerError: The circuit is open.
        """
        desk = self._desk
        if desk.permits == MANY and desk.clock() < desk.stale_at:
            usage = desk.view.usage
            if usage is not None:
                return usage
        return self._admission.check()

    def is_calm(self) -> bool:
        """Tell, as cheaply as :meth:`check`, that the last reading is fresh and the circuit closed."""
        desk = self._desk
        return desk.permits == MANY and desk.clock() < desk.stale_at

    def allows(self, nbytes: ByteSize = 0) -> bool:
        """
        Tell whether ``reserve(nbytes)`` would be admitted now. Never raises for want of memory, never waits.

        It tries what a reservation tries: a new reading, and relief where that does not stand on an event loop.
        """
        lent_bytes = lent_around(self._desk)
        if lent_bytes is None:
            return self._admission.allows(cost_bytes(nbytes))
        return self._admission.allows(max(0, cost_bytes(nbytes) - lent_bytes), nested=True)

    def reserve(self, nbytes: ByteSize, *, timeout: float | None = _AT_ONCE) -> Reservation:
        """
        Return a reservation of *nbytes*: enter it with ``with`` or ``async with``.

        Entering refuses what does not fit, after relief was tried. First come, first served: nobody overtakes those
        who wait. ``reserve(0, timeout=...)`` waits until the circuit admits work.

        Args:
            nbytes: What the work is about to need.
            timeout: Seconds to wait for room; 0 does not wait, None waits for ever. What can never fit is refused at
                once.

        Raises:
            TypeError: *nbytes* or *timeout* is of another kind.
            ValueError: *nbytes* cannot be meant, or *timeout* is negative.
        """
        if type(nbytes) is not int or nbytes < 0:
            nbytes = cost_bytes(nbytes)
        if timeout is not _AT_ONCE:
            timeout = check_timeout(timeout)
        return Reservation(self._desk, self._admission, nbytes, timeout)

    def acquire(self, nbytes: ByteSize, *, timeout: float | None = 0.0) -> Reservation:
        """
        Return a reservation of *nbytes* that is held already: for work that is submitted here and ends elsewhere.

        ``held = breaker.acquire("64 MiB", timeout=None)``, then ``held.release()`` in a callback or another thread, at
        any moment. It has no scope, so that jobs which are begun in a loop do not draw from each other;
        ``held.run(fn)`` calls a function in its scope.

        Args and errors are those of :meth:`reserve`, whose ``with`` it stands for.
        """
        return self.reserve(nbytes, timeout=timeout).acquired()

    async def aacquire(self, nbytes: ByteSize, *, timeout: float | None = 0.0) -> Reservation:
        """Return a reservation as :meth:`acquire` does, without blocking the event loop while waiting."""
        return await self.reserve(nbytes, timeout=timeout).aacquired()

    def by_level(self, normal: T, warning: T, critical: T) -> T:
        """Return the one that goes with the level: ``top = breaker.by_level(50, 25, 10)``."""
        return (normal, warning, critical)[self.level]

    # ----- wrapping

    def execute(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Check, call *fn*, take a reading, and return what *fn* returned; finished work is never thrown away.

        An async *fn* is checked when it is awaited.

        Raises:
            MemoryCircuitBreakerError: The circuit is open; *fn* was not called.
        """
        if kind_of(fn) == "coroutine":
            return cast("R", self._aexecute(cast("Any", fn), *args, **kwargs))
        with self.reserve(0):
            try:
                return fn(*args, **kwargs)
            finally:
                self._readings.look()

    async def _aexecute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        async with self.reserve(0):
            try:
                return await fn(*args, **kwargs)
            finally:
                self._readings.look()

    @overload
    def guard(self, fn: F, /) -> F: ...
    @overload
    def guard(self, fn: None = None, /, *, cost: Cost = None, timeout: float | None = 0.0) -> Callable[[F], F]: ...
    def guard(self, fn: Any = None, /, *, cost: Cost = None, timeout: float | None = 0.0) -> Any:
        """
        Admit each call of a function before it runs: plain, async, generator or async generator.

        A generator is admitted at its first step, and holds what it got until it is exhausted or closed.

        Args:
            fn: The function, where the decorator is used without parentheses.
            cost: Bytes to reserve for a call: a size, a callable of the call's arguments, ``"auto"``, or None to check
                only. ``"auto"`` measures calls and learns; the first ones of each size run alone, so give it a
                *timeout* of many calls' length.
            timeout: Seconds to wait for room, as for :meth:`reserve`.
        """
        check_timeout(timeout)
        if fn is not None:
            return wrap(lambda: self, fn, cost, timeout)
        return lambda fn: wrap(lambda: self, fn, cost, timeout)

    # ----- seeing

    def tick(self) -> MemoryUsage:
        """
        Take a reading by hand and decide on it; forget who waits on a closed event loop.

        Runs no relief. A reading that fails is logged; the last one stands.
        """
        self._readings.refresh()
        self._queue.prune()
        return self._readings.usage

    def usage(self) -> MemoryUsage:
        """Return the last reading, or a new one if it is stale."""
        return self._readings.current()

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"`` or ``"half-open"``, as of the last reading."""
        return self._desk.view.circuit.state.value

    @property
    def level(self) -> Level:
        """How tight memory is, as of the last reading; stale ones are taken again. NORMAL in mode ``"off"``."""
        if self.mode == "off":
            return Level.NORMAL
        self._readings.current()
        return self._desk.view.circuit.level

    @property
    def mode(self) -> BreakerMode:
        """``"enforce"``, ``"observe"`` or ``"off"``."""
        return self._readings.config.mode

    @property
    def on_change(self) -> Signal[BreakerChange]:
        """
        Tells of each change of state or level.

        A callback runs in the thread that took the reading, outside of every lock, in order; it is kept until it is
        disconnected, and one that raises is logged.
        """
        return self._readings.on_change

    @property
    def on_overrun(self) -> Signal[CostOverrun]:
        """
        Tells, once of each guarded function, that a call of it took clearly more than it had reserved.

        Only calls that ran while nobody else held bytes are looked at, and of those some. A callback runs in the thread
        of the call.
        """
        return self._on_overrun

    @property
    def retry_after(self) -> float:
        """Seconds until trying again may be of use; 0 while closed."""
        return self._readings.retry_after()

    def statistics(self) -> BreakerStatistics:
        """Return the counts since the breaker was made."""
        desk, readings, relief = self._desk, self._readings, self._relieving.relief
        desk.sweep()
        return BreakerStatistics(
            reserved_bytes=desk.reserved_bytes,
            waiting=desk.waiting,
            admitted=desk.admitted,
            refused=desk.refused,
            opened=readings.opened,
            stuck=readings.stuck,
            readings=desk.readings,
            relief_runs=relief.runs,
            relief_freed_bytes=relief.freed_bytes,
            overruns=sum(record.overruns for record in list(self._records.values())),
        )

    def learned(self) -> Mapping[str, LearnedCost]:
        """Return what is known of the functions that are guarded with a cost, by name."""
        return {name: record.learned() for name, record in list(self._records.items())}

    def health(self) -> dict[str, Any]:
        """
        Return what a health endpoint shows; JSON-ready.

        ``ready`` is False only under sustained pressure: once the circuit has been open for ten seconds. That callers
        wait, or are refused now and then, is no reason to take a worker out of service.
        """
        usage = self._readings.current()
        self._desk.sweep()
        circuit = self._desk.view.circuit
        return {
            "name": self._readings.name,
            "ready": self._is_ready(),
            "state": circuit.state.value,
            "level": circuit.level.name.lower(),
            "mode": self.mode,
            "used_bytes": usage.used_bytes,
            "limit_bytes": usage.limit_bytes,
            "headroom_bytes": usage.headroom_bytes,
            "percent": round(usage.percent, 1),
            "source": usage.source,
            "rss_bytes": usage.rss_bytes,
            "reserved_bytes": self._desk.reserved_bytes,
            "waiting": self._desk.waiting,
            "allocator_free_bytes": contained(held_free_bytes, what="allocator"),
            "stuck": circuit.raised_bytes is not None,
            "retry_after": self.retry_after,
        }

    def _is_ready(self) -> bool:
        circuit = self._desk.view.circuit
        if circuit.state is not State.OPEN or circuit.since is None or not self._desk.enforcing:
            return True
        return self._readings.clock() - circuit.since < _SUSTAINED_SECONDS

    def describe(self) -> str:
        """Return the same for people, in a few lines."""
        usage = self._readings.current()
        counts = self.statistics()
        circuit = self._desk.view.circuit
        return (
            f"{self._readings.name}: {self.state}, level {circuit.level.name.lower()}, mode {self.mode}\n"
            f"{format_bytes(usage.used_bytes)} of {format_bytes(usage.limit_bytes)} in use "
            f"({usage.percent:.0f} %, {usage.source}); {self._readings.config.lines.describe()}\n"
            f"{format_bytes(counts.reserved_bytes)} reserved, {counts.waiting} waiting, {counts.admitted} admitted, "
            f"{counts.refused} refused; opened {counts.opened} times; "
            f"relief ran {counts.relief_runs} times and gave back {format_bytes(counts.relief_freed_bytes)}"
        )

    def __repr__(self) -> str:
        return f"<MemoryCircuitBreaker {self._readings.name!r}, {self.state}>"

    # ----- for the package

    def _lent_here(self) -> int | None:
        """Return what the reservations that are held around the caller have left; None where there is none."""
        return lent_around(self._desk)

    def _room(self) -> Room:
        """Return what there is to be booked if nobody holds any, and what lies above the threshold."""
        self._readings.current()
        lines = self._readings.thresholds()
        return Room(max(0, lines.open - self._desk.view.floor.nbytes), lines.limit - lines.open)

    def _record(self, name: str) -> Record:
        """Return what is known of the function *name*."""
        found = self._records.get(name)
        return self._records.setdefault(name, Record(name)) if found is None else found

    def _alone(self, nbytes: int) -> tuple[int, bool]:
        """Return how often work was admitted, and whether all that is booked are these *nbytes*."""
        return self._desk.admitted, self._desk.reserved_bytes == nbytes

    def _took(self, record: Record, booked_bytes: int, peak_bytes: int) -> None:
        """Hear what a call took that ran alone."""
        record.peak_bytes = max(record.peak_bytes, peak_bytes)
        if is_overrun(booked_bytes, peak_bytes):
            record.overruns += 1
            self._tell_overrun(record, booked_bytes, peak_bytes)

    def _tell_overrun(self, record: Record, booked_bytes: int, peak_bytes: int) -> None:
        if record.told:
            return
        record.told = True
        contained(self._log_overrun, record.name, booked_bytes, peak_bytes, what="log of")
        self._on_overrun.announce(CostOverrun(record.name, booked_bytes, peak_bytes))

    def _log_overrun(self, name: str, booked_bytes: int, peak_bytes: int) -> None:
        log.warning(
            "%s: a call of %s took %s and had reserved %s; give it a higher cost",
            self._readings.name,
            name,
            format_bytes(peak_bytes),
            format_bytes(booked_bytes),
        )

    def _apply(self, config: Config) -> None:
        """Go by *config* from now on, in place."""
        if _relieves(config) is not _relieves(self._readings.config):
            self._relieving.relief = _relief(config, self._readings.clock)
        self._readings.apply(config)

    def _forget_threads(self) -> None:
        self._desk.forget()
        self._readings.forget()
        self._relieving.forget()
        self._relieving.relief = _relief(self._readings.config, self._readings.clock)


def check_timeout(timeout: float | None) -> float | None:
    """Return *timeout* in seconds if it can be meant; infinity means for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, got {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout is 0 seconds or more, or None to wait for ever; got {timeout!r}")
    try:
        seconds = float(timeout)
    except OverflowError:
        return None  # longer than anything
    return None if seconds == math.inf else seconds


def _relief(config: Config, clock: Callable[[], float]) -> Relief:
    collect = settings().force_gc is not False
    if not _relieves(config):
        return Relief((), clock)
    return Relief(default_steps(collect=collect), clock, caches=shrinkables)


def _relieves(config: Config) -> bool:
    return config.relief and config.mode != "off"
