"""
Functions that remember their results.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, MutableMapping
from functools import partial, update_wrapper
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from memguard.caching._flight import Shelf, TaskFlights, ThreadFlights
from memguard.caching._lru import LRUCache
from memguard.caching._views import MISSING
from memguard.caching._wrapper import write
from memguard.units import ByteSize
from memguard.wrapping import kind_of

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")

DEFAULT_ENTRIES = 1000
_DEAD_SHARE = 8
_NOTHING = object()


class CacheInfo(NamedTuple):
    """What :func:`functools.lru_cache` tells, too; *maxsize* and *currsize* are bytes where those are bounded."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


class CachedFunction(Protocol[P, R_co]):
    """
    A function that remembers its results. As a method it binds like one.

    Attributes:
        cache: Where the results are.
        __wrapped__: The function itself.
    """

    cache: MutableMapping[Any, Any]
    __wrapped__: Callable[..., Any]
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the result for these arguments."""
        ...

    @overload
    def __get__(self, instance: None, owner: type | None = None, /) -> CachedFunction[P, R_co]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], R_co], instance: S, owner: type | None = None, /
    ) -> Callable[Q, R_co]: ...

    def cache_info(self) -> CacheInfo:
        """Return hits, misses and sizes."""
        ...

    def cache_clear(self) -> None:
        """Forget all results. One that is being computed is not kept."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the result for these arguments; tell whether there was one."""
        ...


class _Decorator(Protocol):
    def __call__(self, fn: Callable[P, R], /) -> CachedFunction[P, R]: ...


@overload
def cached(fn: Callable[P, R], /) -> CachedFunction[P, R]: ...
@overload
def cached(
    cache: MutableMapping[Any, Any] | None = None,
    *,
    key: Callable[..., Any] | None = None,
    max_entries: int | None = None,
    max_bytes: ByteSize | None = None,
    ttl: float | None = None,
) -> _Decorator: ...
def cached(
    cache: Any = None,
    *,
    key: Callable[..., Any] | None = None,
    max_entries: int | None = None,
    max_bytes: ByteSize | None = None,
    ttl: float | None = None,
) -> Any:
    """
    Have a function, plain or async, remember its results: ``@cached``, or ``@cached(max_bytes="50 MiB", ttl=3600)``.

    However many threads or tasks ask for one missing result, it is computed once. Errors are raised to all who waited
    and not kept. ``f(1)``, ``f(x=1)`` and ``f(x=True)`` are one call. In a class the object itself is not held: its
    results go with it (if it takes weak references).

    Args:
        cache: Where to keep results: an :class:`LRUCache`, or any mutable mapping, of cachetools for one. None makes an
            LRUCache of the bounds below.
        key: Makes the key from the arguments; None takes the arguments themselves, which must be hashable.
        max_entries: So many results at most; 1,000 where no bound is given.
        max_bytes: So many bytes at most, results and keys together.
        ttl: Seconds after which a result is computed anew.

    Raises:
        TypeError: What is decorated is no function, or a generator function; or *cache* came with bounds.
        ValueError: A bound cannot be meant.
    """
    if callable(cache) and not isinstance(cache, MutableMapping):
        return _decorate(cache, _cache(None, None, None, None), None)
    kept = _cache(cache, max_entries, max_bytes, ttl)
    return lambda fn: _decorate(fn, kept, key)


def _cache(
    cache: MutableMapping[Any, Any] | None, max_entries: int | None, max_bytes: ByteSize | None, ttl: float | None
) -> MutableMapping[Any, Any]:
    if cache is None:
        if max_entries is None and max_bytes is None:
            max_entries = DEFAULT_ENTRIES
        return LRUCache(max_entries, max_bytes=max_bytes, ttl=ttl)
    if (max_entries, max_bytes, ttl) != (None, None, None):
        raise TypeError("give a cache or bounds, not both: the cache has its own")
    if not isinstance(cache, MutableMapping):
        raise TypeError(f"cache is a mutable mapping, got {cache!r}")
    return cache


class _Foreign:
    """A mapping of somebody else's, made safe in threads and counted."""

    def __init__(self, mapping: MutableMapping[Any, Any]) -> None:
        self._mapping = mapping
        self._lock = threading.RLock()
        self.hits = 0
        self.misses = 0

    def get(self, key: Any, default: Any) -> Any:
        with self._lock:
            try:
                value = self._mapping[key]
            except KeyError:
                self.misses += 1
                return default
            self.hits += 1
            return value

    def peek(self, key: Any, default: Any) -> Any:
        with self._lock:
            return self._mapping.get(key, default)

    def set(self, key: Any, value: Any) -> None:
        with self._lock:
            try:
                self._mapping[key] = value
            except ValueError:  # cachetools: too large
                self._mapping.pop(key, None)

    def pop(self, key: Any, default: Any) -> Any:
        with self._lock:
            return self._mapping.pop(key, default)

    def clear(self) -> None:
        with self._lock:
            self._mapping.clear()

    def info(self) -> CacheInfo:
        size = getattr(self._mapping, "currsize", None)
        return CacheInfo(
            self.hits,
            self.misses,
            getattr(self._mapping, "maxsize", None),
            len(self._mapping) if size is None else size,
        )


class _Tokens:
    """
    What stands for an object in a key, so that the key does not hold it.

    Args:
        drop: Forgets the results of objects that are gone, by their tokens.
        kept: Returns how many results there are.
    """

    def __init__(self, drop: Callable[[set[object]], object], kept: Callable[[], int]) -> None:
        self._by_id: dict[int, tuple[weakref.ref[Any], object]] = {}
        self._dead: set[object] = set()
        self._drop = drop
        self._kept = kept

    def __call__(self, instance: Any) -> Any:
        entry = self._by_id.get(id(instance))
        if entry is not None and entry[0]() is instance:
            return entry[1]
        return self._new(instance)

    def _new(self, instance: Any) -> Any:
        token, number = object(), id(instance)

        def died(_: object) -> None:
            self._by_id.pop(number, None)
            self._dead.add(token)  # not more: it may come at any moment

        try:
            reference = weakref.ref(instance, died)
        except TypeError:
            return instance  # a number of a static method, say; or an object that has to be held
        self._by_id[number] = reference, token
        # All results are looked through, so not for each object that is gone.
        if len(self._dead) * _DEAD_SHARE > self._kept():
            dead, self._dead = self._dead, set()
            self._drop(dead)
        return token


class _Remembering(Generic[P, R]):
    """A function, where its results are, and those that are being computed."""

    def __init__(self, fn: Callable[P, R], cache: MutableMapping[Any, Any]) -> None:
        self.fn = fn
        self.cache = cache
        self.is_async = kind_of(fn) == "coroutine"
        self.store: Any = cache if isinstance(cache, LRUCache) else _Foreign(cache)
        shelf = Shelf(
            find=lambda key: self.store.peek(key, MISSING),
            keep=self.store.set,
            drop=lambda key: self.store.pop(key, None),
        )
        flights = TaskFlights if self.is_async else ThreadFlights
        self.flights: Any = flights(getattr(fn, "__qualname__", repr(fn)), shelf)
        self.tokens = _Tokens(self._drop, lambda: len(cache))
        _alive.add(self)

    def miss(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute what is missing; awaitable for a coroutine function."""
        return self.flights.compute(key, partial(self.fn, *args, **kwargs))

    def forget(self, key: Any) -> bool:
        """Forget the result for *key*; tell whether there was one."""
        self.flights.forget(key)
        return self.store.pop(key, _NOTHING) is not _NOTHING

    def clear(self) -> None:
        """Forget all results."""
        self.flights.forget_all()
        self.store.clear()

    def info(self) -> CacheInfo:
        """Return hits, misses and sizes."""
        if isinstance(self.store, _Foreign):
            return self.store.info()
        counts = self.store.statistics()
        return CacheInfo(counts.hits, counts.misses, self.store.maxsize, self.store.currsize)

    def _drop(self, tokens: set[object]) -> None:
        for key in list(self.cache):
            token = key[0] if isinstance(key, tuple) and key else key
            if token in tokens:
                self.store.pop(key, None)


def _decorate(fn: Any, cache: MutableMapping[Any, Any], key: Callable[..., Any] | None) -> Any:
    if not callable(fn):
        raise TypeError(f"cached wraps a function, got {fn!r}")
    if kind_of(fn) in ("generator", "async generator"):
        raise TypeError(f"{fn!r} is a generator function: what it yields is gone once read; return a list instead")
    memory: _Remembering[Any, Any] = _Remembering(fn, cache)
    wrapper, make_key = _written(memory) if key is None else _with_key(memory, key)
    wrapper.cache = cache
    wrapper.cache_info = memory.info
    wrapper.cache_clear = memory.clear
    wrapper.invalidate = lambda *args, **kwargs: memory.forget(make_key(*args, **kwargs))
    return wrapper


def _written(memory: _Remembering[Any, Any]) -> tuple[Any, Callable[..., Any]]:
    cache = memory.cache
    names = {"get": memory.store.get, "miss": memory.miss, "MISSING": MISSING, "token": memory.tokens}
    inline = isinstance(cache, LRUCache) and cache.reads_directly
    if isinstance(cache, LRUCache) and inline:
        names |= {"cache": cache, "data": cache._data, "entries": cache._entries, "touch": cache._touch}
        # Looked up at each call: the cache may begin to keep ages, and then it gets in another way.
        names["get"] = lambda key, default: cache.get(key, default)  # noqa: PLW0108
    return write(memory.fn, names, is_async=memory.is_async, method=_in_class(memory.fn), inline=inline)


def _with_key(memory: _Remembering[Any, Any], key: Callable[..., Any]) -> tuple[Any, Callable[..., Any]]:
    if not callable(key):
        raise TypeError(f"key is a callable, got {key!r}")

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        made = key(*args, **kwargs)
        value = memory.store.get(made, MISSING)
        return memory.miss(made, args, kwargs) if value is MISSING else value

    async def awrapper(*args: Any, **kwargs: Any) -> Any:
        made = key(*args, **kwargs)
        value = memory.store.get(made, MISSING)
        return await memory.miss(made, args, kwargs) if value is MISSING else value

    return update_wrapper(awrapper if memory.is_async else wrapper, memory.fn), key


def _in_class(fn: Any) -> bool:
    """Tell whether *fn* was defined in the body of a class."""
    around, _, _ = getattr(fn, "__qualname__", "").rpartition(".")
    return bool(around) and not around.endswith("<locals>")


_alive: weakref.WeakSet[_Remembering[Any, Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for memory in list(_alive):
        memory.flights.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
