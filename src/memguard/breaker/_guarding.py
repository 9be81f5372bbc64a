"""
Has functions admitted before they run, and tells of those that take more than they reserve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from memguard import wrapping
from memguard.breaker._learned_reservation import LearnedReservation
from memguard.breaker._learning import Record
from memguard.breaker._reservation import Reservation
from memguard.policy import cost_bytes
from memguard.sampling import PeakMeasurement, measure_cheaply
from memguard.signals import contained
from memguard.units import ByteSize

if TYPE_CHECKING:
    from memguard.breaker._breaker import MemoryCircuitBreaker

Cost: TypeAlias = ByteSize | float | Callable[..., ByteSize | float] | None
_Reserve: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], wrapping.Around]
_EAGER_CALLS, _WATCHED_EVERY = 8, 64


def check_cost(cost: Cost) -> Cost:
    """Return *cost* if it can be meant."""
    if cost is None or cost == "auto" or callable(cost):
        return cost
    return cost_bytes(cost)


def wrap(breaker: Callable[[], MemoryCircuitBreaker], fn: Any, cost: Cost, timeout: float | None) -> Any:
    """
    Return *fn*, admitted by what *breaker* returns at the call.

    Raises:
        TypeError: *fn* cannot be called.
    """
    if not callable(fn) and not isinstance(fn, classmethod):
        raise TypeError(f"guard wraps a function, got {fn!r}")
    cost = check_cost(cost)
    if cost is None:
        return wrapping.wrap(fn, _checking(breaker, timeout), plain=functools.partial(_checked, breaker, fn))
    ask = _Ask(breaker, _name_of(fn), timeout)
    return wrapping.wrap(fn, ask.learned if cost == "auto" else functools.partial(ask.given, cost))


def _name_of(fn: Any) -> str:
    """Return what *fn* is called in reports; functions without a name of their own get their line."""
    while isinstance(fn, (functools.partial, staticmethod, classmethod)):
        fn = fn.func if isinstance(fn, functools.partial) else fn.__func__
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    code = getattr(fn, "__code__", None)
    line = f":{code.co_firstlineno}" if "<lambda>" in name and code is not None else ""
    return f"{getattr(fn, '__module__', None) or type(fn).__module__}.{name}{line}"


def _checking(breaker: Callable[[], MemoryCircuitBreaker], timeout: float | None) -> _Reserve:
    return lambda _args, _kwargs: breaker().reserve(0, timeout=timeout)


def _checked(breaker: Callable[[], MemoryCircuitBreaker], fn: Any, guarded: Any) -> Any:
    def checked(*args: Any, **kwargs: Any) -> Any:
        if breaker().is_calm():
            return fn(*args, **kwargs)
        return guarded(*args, **kwargs)

    return checked


class _Ask:
    """Makes the reservations of one guarded function."""

    def __init__(self, breaker: Callable[[], MemoryCircuitBreaker], name: str, timeout: float | None) -> None:
        self._breaker = breaker
        self._name = name
        self._timeout = timeout

    def given(self, cost: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> wrapping.Around:
        """Reserve what was told; look now and then whether that is enough."""
        breaker = self._breaker()
        if breaker.mode == "off":
            return breaker.reserve(0)
        nbytes = cost_bytes(cost(*args, **kwargs)) if callable(cost) else cost
        reservation = breaker.reserve(nbytes, timeout=self._timeout)
        record = breaker._record(self._name)
        calls = record.calls
        record.calls, record.booked_bytes = calls + 1, nbytes
        if calls < _EAGER_CALLS or calls % _WATCHED_EVERY == 0:
            return _WatchedReservation(breaker, reservation, record)
        return reservation

    def learned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> wrapping.Around:
        """Reserve what calls of the function were seen to take."""
        breaker = self._breaker()
        if breaker.mode == "off":
            return breaker.reserve(0)
        record = breaker._record(self._name)
        return LearnedReservation(
            breaker._gate,
            breaker.reserve,
            record,
            (args, kwargs),
            self._timeout,
            lent_here=breaker._lent_here,
            waits=breaker.mode == "enforce",
        )


class _WatchedReservation:
    """A reservation of a given size that looks whether the call takes clearly more, if nobody else holds any."""

    def __init__(self, breaker: MemoryCircuitBreaker, reservation: Reservation, record: Record) -> None:
        self._breaker = breaker
        self._reservation = reservation
        self._record = record
        self._peak: PeakMeasurement | None = None
        self._admitted = 0

    def __enter__(self) -> Self:
        self._reservation.__enter__()
        contained(self._begin, what="measuring")
        return self

    async def __aenter__(self) -> Self:
        await self._reservation.__aenter__()
        contained(self._begin, what="measuring")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.deactivate()
        try:
            contained(self._end, what="measuring")
        finally:
            self._reservation.release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def activate(self) -> None:
        """See :meth:`Reservation.activate`."""
        self._reservation.activate()

    def deactivate(self) -> None:
        """See :meth:`Reservation.deactivate`."""
        self._reservation.deactivate()

    def _begin(self) -> None:
        self._admitted, alone = self._breaker._alone(self._reservation.nbytes)
        if alone:
            peak = measure_cheaply()
            peak.__enter__()
            self._peak = peak

    def _end(self) -> None:
        peak, self._peak = self._peak, None
        if peak is None:
            return
        peak.__exit__(None, None, None)
        admitted, alone = self._breaker._alone(self._reservation.nbytes)
        if alone and admitted == self._admitted:
            self._breaker._took(self._record, self._reservation.nbytes, peak.peak_bytes)
