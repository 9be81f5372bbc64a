"""
The breaker that people hold: one object that reads, decides, relieves and answers.

No thread watches: whoever finds the reading stale takes the next one. One is started only to give memory back where
the caller must not be held up by it, and ends with that.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast, overload

from memguard.breaker._admission import Admission
from memguard.breaker._config import BreakerMode, Config, check_clock, make_config
from memguard.breaker._core import BreakerChange, Core
from memguard.breaker._guarding import Cost, wrap
from memguard.breaker._reservation import Reservation
from memguard.breaker._statistics import BreakerStatistics
from memguard.policy import State
from memguard.relief import Relief, default_steps, held_free_bytes, shrinkables
from memguard.sampling import Sampler
from memguard.settings import settings
from memguard.signals import Signal
from memguard.units import ByteSize, Threshold, format_bytes, parse_bytes
from memguard.values import Level, MemoryUsage
from memguard.wrapping import kind_of

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_OPEN_AT = "80%"
"""Refuse new work. The fifth that is left pays for what grows between two readings."""
DEFAULT_CHECK_INTERVAL = 1.0


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
            ``"off"`` lets everything pass, and neither counts, logs nor relieves.
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
        self._core = Core(config, name, check_clock(clock))
        self._admission = Admission(self._core, _relief(config, clock))
        _alive.add(self)

    # ----- asking

    def check(self) -> MemoryUsage:
        """
        Return the reading that new work may go by.

        On an event loop's thread relief is scheduled in another thread, not run.

        Raises:
            MemoryCircuitBreakerError: The circuit is open.
        """
        core = self._core
        if core.clock() < core.stale_at and not core.refusing and core.usage is not None:
            return core.usage
        return self._look_closer()

    def _look_closer(self) -> MemoryUsage:
        core = self._core
        if core.refusing and self._admission.relieve(core.sampler):
            usage = core.refresh()
        elif core.clock() < core.stale_at and core.usage is not None:
            usage = core.usage
        else:
            usage = core.refresh(self._admission.relieve)
        if core.refusing:
            raise self._admission.refusal()
        return usage

    def is_calm(self) -> bool:
        """Tell, as cheaply as :meth:`check`, that the last reading is fresh and the circuit closed."""
        core = self._core
        return core.clock() < core.stale_at and core.circuit.state is State.CLOSED

    def allows(self, nbytes: ByteSize = 0) -> bool:
        """Tell whether *nbytes* would be admitted now. Never raises for want of memory, never waits."""
        return self._admission.allows(parse_bytes(nbytes))

    def reserve(self, nbytes: ByteSize, *, timeout: float | None = 0.0) -> Reservation:
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
            nbytes = parse_bytes(nbytes)
        if timeout is not None and (type(timeout) is not float or not timeout >= 0):
            timeout = check_timeout(timeout)
        return Reservation(self._admission, nbytes, timeout)

    def by_level(self, normal: T, warning: T, critical: T) -> T:
        """Return the one that goes with the level: ``top = breaker.by_level(50, 25, 10)``."""
        self._core.current()
        return (normal, warning, critical)[self._core.circuit.level]

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
                self._core.refresh()

    async def _aexecute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        async with self.reserve(0):
            try:
                return await fn(*args, **kwargs)
            finally:
                self._core.refresh()

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
                only. ``"auto"`` measures calls and learns; the first ones run one at a time, so give it a *timeout*.
            timeout: Seconds to wait for room, as for :meth:`reserve`.
        """
        check_timeout(timeout)
        if fn is not None:
            return wrap(lambda: self, fn, cost, timeout)
        return lambda fn: wrap(lambda: self, fn, cost, timeout)

    # ----- seeing

    def tick(self) -> MemoryUsage:
        """Take a reading by hand and decide on it. Runs no relief."""
        return self._core.refresh()

    def usage(self) -> MemoryUsage:
        """Return the last reading, or a new one if it is stale."""
        return self._core.current()

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"`` or ``"half-open"``, as of the last reading."""
        return self._core.circuit.state.value

    @property
    def level(self) -> Level:
        """How tight memory is, as of the last reading; stale ones are taken again."""
        self._core.current()
        return self._core.circuit.level

    @property
    def mode(self) -> BreakerMode:
        """``"enforce"``, ``"observe"`` or ``"off"``."""
        return self._core.config.mode

    @property
    def on_change(self) -> Signal[BreakerChange]:
        """
        Tells of each change of state or level.

        A callback runs in the thread that took the reading, outside of every lock, in order; it is kept until it is
        disconnected, and one that raises is logged.
        """
        return self._core.on_change

    @property
    def retry_after(self) -> float:
        """Seconds until trying again may be of use; 0 while closed."""
        return self._core.retry_after()

    def statistics(self) -> BreakerStatistics:
        """Return the counts since the breaker was made."""
        admission, core = self._admission, self._core
        return BreakerStatistics(
            reserved_bytes=core.ledger.reserved_bytes,
            waiting=admission.waiting,
            admitted=admission.admitted,
            refused=admission.refused,
            opened=core.opened,
            stuck=core.stuck,
            readings=core.readings,
            relief_runs=admission.relief.runs,
            relief_freed_bytes=admission.relief.freed_bytes,
        )

    def health(self) -> dict[str, Any]:
        """Return what a health endpoint shows; JSON-ready."""
        usage = self._core.current()
        return {
            "name": self._core.name,
            "state": self.state,
            "level": self._core.circuit.level.name.lower(),
            "mode": self.mode,
            "used_bytes": usage.used_bytes,
            "limit_bytes": usage.limit_bytes,
            "headroom_bytes": usage.headroom_bytes,
            "percent": round(usage.percent, 1),
            "source": usage.source,
            "rss_bytes": usage.rss_bytes,
            "reserved_bytes": self._core.ledger.reserved_bytes,
            "waiting": self._admission.waiting,
            "allocator_free_bytes": held_free_bytes(),
            "stuck": self._core.circuit.raised_bytes is not None,
            "retry_after": self.retry_after,
        }

    def describe(self) -> str:
        """Return the same for people, in a few lines."""
        usage = self._core.current()
        counts = self.statistics()
        return (
            f"{self._core.name}: {self.state}, level {self._core.circuit.level.name.lower()}, mode {self.mode}\n"
            f"{format_bytes(usage.used_bytes)} of {format_bytes(usage.limit_bytes)} in use "
            f"({usage.percent:.0f} %, {usage.source}); {self._core.config.lines.describe()}\n"
            f"{format_bytes(counts.reserved_bytes)} reserved, {counts.waiting} waiting, {counts.admitted} admitted, "
            f"{counts.refused} refused; opened {counts.opened} times; "
            f"relief ran {counts.relief_runs} times and gave back {format_bytes(counts.relief_freed_bytes)}"
        )

    def __repr__(self) -> str:
        return f"<MemoryCircuitBreaker {self._core.name!r}, {self.state}>"

    # ----- for the package

    def _room_bytes(self) -> int:
        return self._admission.room_bytes()

    def _apply(self, config: Config) -> None:
        """Go by *config* from now on, in place."""
        if _relieves(config) is not _relieves(self._core.config):
            self._admission.relief = _relief(config, self._core.clock)
        self._core.apply(config)

    def _forget_threads(self) -> None:
        self._core.forget_threads()
        self._admission.forget_threads()
        self._admission.relief = _relief(self._core.config, self._core.clock)


def check_timeout(timeout: float | None) -> float | None:
    """Return *timeout* if it can be meant."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, got {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout is 0 seconds or more, or None to wait for ever; got {timeout!r}")
    return timeout


def _relief(config: Config, clock: Callable[[], float]) -> Relief:
    collect = settings().force_gc is not False
    if not _relieves(config):
        return Relief((), clock)
    return Relief(default_steps(collect=collect), clock, caches=shrinkables)


def _relieves(config: Config) -> bool:
    return config.relief and config.mode != "off"


_alive: weakref.WeakSet[MemoryCircuitBreaker] = weakref.WeakSet()


def _after_fork() -> None:
    # Locks may be held, and lines be filled, by threads that the child does not have.
    for breaker in list(_alive):
        breaker._forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
