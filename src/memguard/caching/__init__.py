"""
Caches that are bounded in bytes, and functions that remember their results.

Rooms of the cache: the mapping (``_lru``) and its short cuts (``_direct``), what is in it (``_entries``), the order in
which that goes (``_order``) and when it is over (``_ages``), giving way (``_pressure``), weak values (``_weak``).

Rooms of the decorator (``_cached``): the object that it makes (``_binding``), the wrapper for a signature
(``_wrapper``), what is remembered (``_memory``), and one computation at a time for each key (``_flight``, ``_waits``).
"""

import cachetools

from memguard.caching._cached import CachedFunction, cached
from memguard.caching._lru import LRUCache
from memguard.caching._memory import CacheInfo
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
