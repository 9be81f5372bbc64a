"""
Has functions admitted before they run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from memguard import wrapping
from memguard.breaker._learning import CostLearner, LearnedReservation
from memguard.breaker._reservation import Reservation
from memguard.units import ByteSize, parse_bytes

if TYPE_CHECKING:
    from memguard.breaker._breaker import MemoryCircuitBreaker

P = ParamSpec("P")
R = TypeVar("R")
Cost: TypeAlias = ByteSize | Callable[..., ByteSize] | None
_Reserve: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Reservation | LearnedReservation]


def check_cost(cost: Cost) -> Cost:
    """Return *cost* if it can be meant."""
    if cost is None or cost == "auto" or callable(cost):
        return cost
    return parse_bytes(cost)


def wrap(breaker: Callable[[], MemoryCircuitBreaker], fn: Callable[P, R], cost: Cost, timeout: float | None) -> Any:
    """
    Return *fn*, admitted by what *breaker* returns at the call.

    Raises:
        TypeError: *fn* cannot be called.
    """
    if not callable(fn):
        raise TypeError(f"guard wraps a function, got {fn!r}")
    cost = check_cost(cost)

    reserve = _learned(breaker, timeout) if cost == "auto" else _told(breaker, cost, timeout)
    return wrapping.wrap(fn, reserve, plain=_checked(breaker, fn, reserve) if cost is None else None)


def _told(breaker: Callable[[], MemoryCircuitBreaker], cost: Cost, timeout: float | None) -> _Reserve:
    def reserve(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reservation:
        nbytes = cost(*args, **kwargs) if callable(cost) else cost
        return breaker().reserve(0 if nbytes is None else nbytes, timeout=timeout)

    return reserve


def _learned(breaker: Callable[[], MemoryCircuitBreaker], timeout: float | None) -> _Reserve:
    learner = CostLearner()

    def reserve(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LearnedReservation:  # noqa: ARG001 - one signature
        asked = breaker()
        nbytes = learner.cost.booked_bytes(asked._room_bytes())
        return LearnedReservation(asked.reserve(nbytes, timeout=timeout), learner)

    return reserve


def _checked(breaker: Callable[[], MemoryCircuitBreaker], fn: Any, reserve: _Reserve) -> Any:
    def checked(*args: Any, **kwargs: Any) -> Any:
        if breaker().is_calm():
            return fn(*args, **kwargs)
        with reserve(args, kwargs):
            return fn(*args, **kwargs)

    return checked
