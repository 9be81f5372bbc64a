"""
A function, where its results are, and those that are being computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, NamedTuple

from memguard.caching._flight import Shelf, TaskFlights, ThreadFlights
from memguard.caching._lru import LRUCache
from memguard.caching._tokens import Tokens
from memguard.caching._views import MISSING
from memguard.forking import forget_in_child
from memguard.wrapping import kind_of

_NOTHING = object()


class CacheInfo(NamedTuple):
    """What :func:`functools.lru_cache` tells, too; *maxsize* and *currsize* are bytes where those are bounded."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


class Foreign:
    """A mapping of somebody else's, made safe in threads and counted."""

    def __init__(self, mapping: MutableMapping[Any, Any]) -> None:
        self._mapping = mapping
        self._lock = threading.RLock()
        self.hits = 0
        self.misses = 0
        forget_in_child(self)

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()

    def get(self, key: Any, default: Any) -> Any:
        """Return what is kept under *key*, and count that."""
        with self._lock:
            try:
                value = self._mapping[key]
            except KeyError:
                self.misses += 1
                return default
            self.hits += 1
            return value

    def peek(self, key: Any, default: Any) -> Any:
        """Return what is kept under *key*."""
        with self._lock:
            return self._mapping.get(key, default)

    def set(self, key: Any, value: Any) -> None:
        """Keep *value*."""
        with self._lock:
            try:
                self._mapping[key] = value
            except ValueError:  # cachetools: too large
                self._mapping.pop(key, None)

    def pop(self, key: Any, default: Any) -> Any:
        """Forget what is kept under *key*."""
        with self._lock:
            return self._mapping.pop(key, default)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._mapping.clear()

    def info(self) -> CacheInfo:
        """Return hits, misses and sizes."""
        size = getattr(self._mapping, "currsize", None)
        bound = getattr(self._mapping, "maxsize", None)
        return CacheInfo(self.hits, self.misses, bound, len(self._mapping) if size is None else size)


class Memory:
    """
    What one function remembers.

    Attributes:
        cache: Where the results are, as it was given.
        store: The same, safe in threads.
        is_async: Whether it is a coroutine function.
        tokens: Stand for the objects whose methods are called.
    """

    def __init__(self, fn: Callable[..., Any], cache: MutableMapping[Any, Any]) -> None:
        self.fn = fn
        self.cache = cache
        self.is_async = kind_of(fn) == "coroutine"
        self.store: Any = cache if isinstance(cache, LRUCache) else Foreign(cache)
        shelf = Shelf(
            find=lambda key: self.store.peek(key, MISSING),
            keep=self.store.set,
            drop=lambda key: self.store.pop(key, None),
        )
        flights = TaskFlights if self.is_async else ThreadFlights
        self._flights: Any = flights(getattr(fn, "__qualname__", repr(fn)), shelf)
        self.tokens = Tokens(self._drop, lambda: len(cache))

    def miss(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute what is missing; awaitable for a coroutine function."""
        return self._flights.compute(key, partial(self.fn, *args, **kwargs))

    def forget(self, key: Any) -> bool:
        """Forget the result for *key*; tell whether there was one."""
        self._flights.forget(key)
        return self.store.pop(key, _NOTHING) is not _NOTHING

    def clear(self) -> None:
        """Forget all results."""
        self._flights.forget_all()
        self.store.clear()

    def info(self) -> CacheInfo:
        """Return hits, misses and sizes."""
        if isinstance(self.store, Foreign):
            return self.store.info()
        counts = self.store.statistics()
        return CacheInfo(counts.hits, counts.misses, self.store.maxsize, self.store.currsize)

    def _drop(self, tokens: set[object]) -> None:
        for key in list(self.cache):
            token = key[0] if isinstance(key, tuple) and key else key
            if token in tokens:
                self.store.pop(key, None)
