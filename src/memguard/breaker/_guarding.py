"""
Wraps functions so that they are admitted before they run. What :mod:`inspect` says of a function stays true of the
wrapper.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

from memguard.breaker._learning import CostLearner, LearnedReservation
from memguard.breaker._reservation import Reservation
from memguard.units import ByteSize, parse_bytes

if TYPE_CHECKING:
    from memguard.breaker._breaker import MemoryCircuitBreaker

P = ParamSpec("P")
R = TypeVar("R")
Cost: TypeAlias = ByteSize | Callable[..., ByteSize] | None
_Reserve: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Reservation | LearnedReservation]
Kind: TypeAlias = Literal["plain", "coroutine", "generator", "async generator"]


def kind_of(fn: Callable[..., Any]) -> Kind:
    """Return what a call of *fn* gives; partials and objects with an async ``__call__`` count as what they wrap."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    for candidate in (fn, type(fn).__call__):
        if inspect.iscoroutinefunction(candidate):
            return "coroutine"
        if inspect.isasyncgenfunction(candidate):
            return "async generator"
        if inspect.isgeneratorfunction(candidate):
            return "generator"
    return "plain"


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
    kind = kind_of(fn)
    if kind == "plain":
        wrapper = _plain(breaker, fn, reserve, checks_only=cost is None)
    else:
        wrapper = {"coroutine": _coroutine, "generator": _generator, "async generator": _async_generator}[kind](
            fn, reserve
        )
    return functools.update_wrapper(wrapper, fn)


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


def _plain(breaker: Callable[[], MemoryCircuitBreaker], fn: Any, reserve: _Reserve, *, checks_only: bool) -> Any:
    if not checks_only:

        def booked(*args: Any, **kwargs: Any) -> Any:
            with reserve(args, kwargs):
                return fn(*args, **kwargs)

        return booked

    def checked(*args: Any, **kwargs: Any) -> Any:
        if breaker().is_calm():
            return fn(*args, **kwargs)
        with reserve(args, kwargs):
            return fn(*args, **kwargs)

    return checked


def _coroutine(fn: Any, reserve: _Reserve) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with reserve(args, kwargs):
            return await fn(*args, **kwargs)

    return wrapper


def _generator(fn: Any, reserve: _Reserve) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with reserve(args, kwargs) as held:
            # A generator shares its caller's context: only while a step runs is this reservation the one around.
            held.deactivate()
            inner = fn(*args, **kwargs)
            step: Callable[[], Any] = functools.partial(next, inner)
            try:
                while True:
                    held.activate()
                    try:
                        value = step()
                    finally:
                        held.deactivate()
                    try:
                        sent = yield value
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step = functools.partial(inner.throw, error)
                    else:
                        step = functools.partial(inner.send, sent)
            except StopIteration as stop:
                return stop.value
            finally:
                inner.close()

    return wrapper


def _async_generator(fn: Any, reserve: _Reserve) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with reserve(args, kwargs) as held:
            held.deactivate()
            inner = fn(*args, **kwargs)
            step: Callable[[], Any] = inner.__anext__
            try:
                while True:
                    held.activate()
                    try:
                        value = await step()
                    finally:
                        held.deactivate()
                    try:
                        sent = yield value
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step = functools.partial(inner.athrow, error)
                    else:
                        step = functools.partial(inner.asend, sent)
            except StopAsyncIteration:
                return
            finally:
                await inner.aclose()

    return wrapper
