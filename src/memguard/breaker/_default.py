"""
The breaker that everybody shares unless told otherwise: one object for the life of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar, overload

from memguard.breaker._breaker import (
    DEFAULT_CHECK_INTERVAL,
    DEFAULT_OPEN_AT,
    F,
    MemoryCircuitBreaker,
    check_timeout,
)
from memguard.breaker._config import BreakerMode, Config, make_config
from memguard.breaker._guarding import Cost, wrap
from memguard.breaker._reservation import Reservation
from memguard.forking import forget_in_child
from memguard.relief import limit_arenas
from memguard.settings import settings
from memguard.units import ByteSize, Threshold
from memguard.values import MemoryUsage


class _Unset:
    def __repr__(self) -> str:
        return "..."


_UNSET: Final = _Unset()
_T = TypeVar("_T")
_Asked: TypeAlias = Mapping[str, Any]
_made: dict[str, MemoryCircuitBreaker] = {}


class _Configured:
    """What :func:`configure` was told so far; changed as a whole, from any thread and at any moment."""

    def __init__(self) -> None:
        self.asked: _Asked = {}
        self._forget_threads()
        forget_in_child(self)

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()

    def swap(self, before: _Asked, after: _Asked) -> bool:
        """Be told *after* if what was told is still *before*; tell whether it was."""
        with self._lock:
            done = self.asked is before
            if done:
                self.asked = after
        return done


_configured = _Configured()


def default_breaker() -> MemoryCircuitBreaker:
    """
    Return the breaker of this process; the same object for all its life.

    Its defaults come from ``MEMGUARD_LIMIT``, ``MEMGUARD_OPEN_AT``, ``MEMGUARD_MODE`` and ``MEMGUARD_CHECK_INTERVAL``;
    what :func:`configure` was told goes before them. The first call also limits glibc's arenas
    (:func:`~memguard.limit_arenas`), unless ``MEMGUARD_ARENAS=keep``: make it early.

    Raises:
        ValueError: One of these holds a wrong value; the text names it.
    """
    found = _made.get("default")
    if found is not None:
        return found
    # Without a lock: a signal handler or finalizer may ask in the midst of this. The first that is done is the one.
    if settings().arenas != "keep":
        limit_arenas()
    return _made.setdefault("default", MemoryCircuitBreaker(**_arguments()))


def configure(
    *,
    open_at: Threshold | _Unset = _UNSET,
    close_at: Threshold | _Unset | None = _UNSET,
    warn_at: Threshold | _Unset | None = _UNSET,
    limit: ByteSize | _Unset | None = _UNSET,
    check_interval: float | _Unset = _UNSET,
    relief: bool | _Unset = _UNSET,
    mode: BreakerMode | _Unset = _UNSET,
) -> MemoryCircuitBreaker:
    """
    Change the default breaker in place; what is not given stays as it is.

    Args and errors are those of :class:`MemoryCircuitBreaker`; after an error nothing has changed.
    """
    given = {
        "open_at": open_at,
        "close_at": close_at,
        "warn_at": warn_at,
        "limit": limit,
        "check_interval": check_interval,
        "relief": relief,
        "mode": mode,
    }
    breaker = default_breaker()
    while True:
        before = _configured.asked
        after = {**before, **{name: value for name, value in given.items() if value is not _UNSET}}
        _config(after)
        if _configured.swap(before, after):
            break
    while True:  # whoever comes last applies what was told last
        asked = _configured.asked
        breaker._apply(_config(asked))
        if _configured.asked is asked:
            return breaker


def _config(asked: _Asked) -> Config:
    return make_config(**{**_defaults(), **asked}, sampler=None)


@overload
def guard(fn: F, /) -> F: ...
@overload
def guard(fn: None = None, /, *, cost: Cost = None, timeout: float | None = 0.0) -> Callable[[F], F]: ...
def guard(fn: Any = None, /, *, cost: Cost = None, timeout: float | None = 0.0) -> Any:
    """Admit each call of a function by the default breaker, as :meth:`MemoryCircuitBreaker.guard` does."""
    check_timeout(timeout)
    if fn is not None:
        return wrap(default_breaker, fn, cost, timeout)
    return lambda fn: wrap(default_breaker, fn, cost, timeout)


def check() -> MemoryUsage:
    """Ask the default breaker, as :meth:`MemoryCircuitBreaker.check` does."""
    return default_breaker().check()


def reserve(nbytes: ByteSize, *, timeout: float | None = 0.0) -> Reservation:
    """Return a reservation of the default breaker's, as :meth:`MemoryCircuitBreaker.reserve` does."""
    return default_breaker().reserve(nbytes, timeout=timeout)


def acquire(nbytes: ByteSize, *, timeout: float | None = 0.0) -> Reservation:
    """Return a held reservation of the default breaker's, as :meth:`MemoryCircuitBreaker.acquire` does."""
    return default_breaker().acquire(nbytes, timeout=timeout)


def _arguments() -> dict[str, Any]:
    return {**_defaults(), **_configured.asked}


def _defaults() -> dict[str, Any]:
    asked = settings()
    return {
        "open_at": _or(asked.open_at, DEFAULT_OPEN_AT),
        "close_at": None,
        "warn_at": None,
        "limit": asked.limit_bytes,
        "check_interval": _or(asked.check_interval, DEFAULT_CHECK_INTERVAL),
        "relief": True,
        "mode": _or(asked.mode, "enforce"),
    }


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
