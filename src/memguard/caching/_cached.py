"""
Functions that remember their results.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from memguard.caching._binding import CachedObject
from memguard.caching._direct import Direct
from memguard.caching._lru import LRUCache
from memguard.caching._memory import CacheInfo, Memory
from memguard.caching._wrapper import Wrappers
from memguard.units import ByteSize
from memguard.wrapping import kind_of

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")

DEFAULT_ENTRIES = 1000


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
    ) -> CachedFunction[Q, R_co]: ...

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


def _decorate(fn: Any, cache: MutableMapping[Any, Any], key: Callable[..., Any] | None) -> Any:
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(_decorate(fn.__func__, cache, key))
    if not callable(fn):
        raise TypeError(f"cached wraps a function, got {fn!r}")
    if kind_of(fn) in ("generator", "async generator"):
        raise TypeError(f"{fn!r} is a generator function: what it yields is gone once read; return a list instead")
    if key is not None and not callable(key):
        raise TypeError(f"key is a callable, got {key!r}")
    memory = Memory(fn, cache)
    wrappers = Wrappers(memory, key, inline=isinstance(cache, Direct))
    cached_object = CachedObject(wrappers.plain)
    wrappers.belong_to(cached_object)
    update_wrapper(cached_object, fn)
    cached_object.__wrapped__ = fn
    cached_object._memory = memory
    cached_object._wrappers = wrappers
    cached_object._owners = weakref.WeakSet()
    cached_object.cache = cache
    cached_object.cache_info = memory.info
    cached_object.cache_clear = memory.clear
    return cached_object
