"""
The names that the peers' own tests import, made of ours: thin, so that what is tested is ours. A plugin of pytest.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
import types
from functools import _CacheInfo
from typing import Any, Generic, TypeVar

import cachetools
import cachetools.keys
import pytest

import memguard

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
MANY = 10**9


def bounds(maxsize: Any, getsizeof: Any) -> dict[str, Any]:
    if getsizeof is None:
        return {"max_entries": int(min(maxsize, MANY))}
    return {"max_bytes": int(min(maxsize, MANY)), "sizeof": getsizeof}


class LRUCache(memguard.LRUCache[K, V], Generic[K, V]):
    """As cachetools spells it."""

    def __init__(self, maxsize: Any, getsizeof: Any = None) -> None:
        super().__init__(**bounds(maxsize, getsizeof))


class TTLCache(memguard.LRUCache[K, V], Generic[K, V, T]):
    """As cachetools spells it."""

    def __init__(self, maxsize: Any, ttl: Any, timer: Any = time.monotonic, getsizeof: Any = None) -> None:
        super().__init__(**bounds(maxsize, getsizeof), ttl=ttl, timer=timer)
        self.ttl, self.timer = ttl, timer


def cached(
    cache: Any, key: Any = cachetools.keys.hashkey, lock: Any = None, condition: Any = None, info: bool = False
) -> Any:
    """As cachetools spells it; the lock is our own business."""
    return memguard.cached(cache, key=key)


class LRU(memguard.LRUCache[Any, Any]):
    """As lru-dict spells it: the most recently used first."""

    def __init__(self, size: int, callback: Any = None) -> None:
        told = None if callback is None else (lambda key, value, reason: reason == "entries" and callback(key, value))
        super().__init__(size, on_evict=told)

    def keys(self) -> Any:
        return list(self)[::-1]

    def values(self) -> Any:
        return [self.peek(key) for key in self.keys()]

    def items(self) -> Any:
        return [(key, self.peek(key)) for key in self.keys()]

    def has_key(self, key: Any) -> bool:
        return key in self

    def get_size(self) -> int:
        return self.maxsize

    def set_size(self, size: int) -> None:
        self.resize(max_entries=size)

    def peek_first_item(self) -> Any:
        return self.items()[0] if self else None

    def peek_last_item(self) -> Any:
        return self.items()[-1] if self else None

    def get_stats(self) -> tuple[int, int]:
        counts = self.statistics()
        return counts.hits, counts.misses

    def popitem(self, least_recent: bool = True) -> Any:
        if least_recent:
            return super().popitem()
        key = self.keys()[0]
        return key, self.pop(key)


def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """As functools spells it."""
    if callable(maxsize):
        return lru_cache()(maxsize)

    def decorate(fn: Any) -> Any:
        key = cachetools.keys.typedkey if typed else None
        found = memguard.cached(key=key, max_entries=MANY if maxsize is None else max(1, maxsize))(fn)
        info = found.cache_info
        found.cache_info = lambda: _CacheInfo(info().hits, info().misses, maxsize, info().currsize)
        found.cache_parameters = lambda: {"maxsize": maxsize, "typed": typed}
        return found

    return decorate


def alru_cache(maxsize: Any = 128, typed: bool = False, *, ttl: Any = None, jitter: Any = None) -> Any:
    """As async-lru spells it."""
    if callable(maxsize):
        return alru_cache()(maxsize)

    def decorate(fn: Any) -> Any:
        if not inspect.iscoroutinefunction(fn):
            raise RuntimeError(f"Coroutine function is required, got {fn!r}")
        found = memguard.cached(max_entries=MANY if maxsize is None else max(1, maxsize), ttl=ttl)(fn)
        info = found.cache_info
        found.cache_info = lambda: _CacheInfo(info().hits, info().misses, maxsize, info().currsize)
        found.cache_parameters = lambda: {"maxsize": maxsize, "typed": typed, "tasks": 0, "closed": False}
        found.cache_invalidate = found.invalidate
        return found

    return decorate


def install() -> None:
    """Have the peers' tests import ours."""
    cachetools.LRUCache, cachetools.TTLCache, cachetools.cached = LRUCache, TTLCache, cached  # type: ignore[misc, assignment]
    lru, async_lru = types.ModuleType("lru"), types.ModuleType("async_lru")
    lru.LRU = LRU  # type: ignore[attr-defined]
    for name, value in {
        "alru_cache": alru_cache,
        "_CacheParameters": dict,
        "_R": TypeVar("_R"),
        "_LRUCacheWrapper": Generic,
        "__version__": "0",
        "__all__": ("alru_cache",),
    }.items():
        setattr(async_lru, name, value)
    sys.modules |= {"lru": lru, "async_lru": async_lru}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> Any:
    """Run coroutine functions, which async-lru's tests are."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**wanted))
    return True


install()
