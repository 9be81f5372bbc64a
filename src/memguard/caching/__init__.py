"""
Caches that are bounded in bytes, and functions that remember their results.

Rooms: the cache (``_lru``), its statistics, the decorator (``_cached``), the wrapper that it makes for a signature
(``_wrapper``), and one computation at a time for each key (``_flight``).
"""

import cachetools

from memguard.caching._cached import CachedFunction, CacheInfo, cached
from memguard.caching._lru import LRUCache
from memguard.caching._statistics import CacheStatistics, EvictionReason

# So cachetools.cached and cachedmethod take it for one of theirs, and show maxsize and currsize.
cachetools.Cache.register(LRUCache)  # pyright: ignore[reportAttributeAccessIssue] - its stubs say less than it is

__all__ = [
    "CacheInfo",
    "CacheStatistics",
    "CachedFunction",
    "EvictionReason",
    "LRUCache",
    "cached",
]
