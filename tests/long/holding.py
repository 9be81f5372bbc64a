"""
Fill one cache in a process of its own, and say what that took.

Usage: holding.py bound KIND KEYS TTL - a cache of 50 MiB until it has dropped as many entries again as it holds
       holding.py entries CACHE COUNT - so many entries of keys and values that cost nothing

Prints bytes of resident memory, and entries.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cachetools

import memguard

MIB = 1024**2
CHANCE = random.Random(1)


@dataclass
class Point:
    id: int
    name: str
    score: float


def text(length: int) -> str:
    return f"{CHANCE.randrange(10 ** min(length, 18)):0{length}d}"


def record(number: int) -> dict[str, Any]:
    return {"id": number + 1000, "name": text(12), "email": text(20), "score": CHANCE.random(), "tags": None}


def document(number: int) -> str:
    user = {"id": number + 1000, "name": text(12), "tags": [text(5), text(6)]}
    return json.dumps({"user": user, "items": [{"a": number + 7000, "b": [1.5, 2.5]}]})


def array(number: int) -> object:
    import numpy as np

    return np.ones(1000)


KINDS: dict[str, Callable[[int], object]] = {
    "dicts": record,
    "dataclasses": lambda number: Point(number + 1000, text(10), CHANCE.random()),
    "strings of 20": lambda number: text(20),
    "strings of 1000": lambda number: text(1000),
    "bytes of 10 kB": lambda number: bytes(10_000),
    "lists of dicts": lambda number: [record(each) for each in range(20)],
    "arrays": array,
    "tuples": lambda number: (number + 1000, text(5), CHANCE.random()),
    "sets": lambda number: {text(8) for _ in range(10)},
    "nested JSON": lambda number: json.loads(document(number)),
}
KEYS: dict[str, Callable[[int], object]] = {"int": lambda number: number + 1000, "str": "key-{}".format}
CACHES: dict[str, Callable[[int], Any]] = {
    "LRUCache": memguard.LRUCache,
    "LRUCache, sizeof": lambda count: memguard.LRUCache(max_bytes=count, sizeof=lambda value: 1),
    "LRUCache, ttl": lambda count: memguard.LRUCache(count, ttl=600),
    "cachetools.LRUCache": cachetools.LRUCache,
    "cachetools.LRUCache, getsizeof": lambda count: cachetools.LRUCache(count, getsizeof=lambda value: 1),
    "cachetools.TTLCache": lambda count: cachetools.TTLCache(count, 600),
}


def resident() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def fill_to_the_bound(kind: str, keys: str, ttl: str) -> tuple[int, int]:
    make, key = KINDS[kind], KEYS[keys]
    cache: memguard.LRUCache[Any, Any] = memguard.LRUCache(max_bytes=50 * MIB, ttl=float(ttl) or None)
    cache["warm"] = make(0)
    memguard.default_breaker().check()
    gc.collect()
    before, number = resident(), 0
    while (evictions := cache.statistics().evictions if number % 1000 == 0 else 0) <= len(cache) or not evictions:
        cache[key(number)] = make(number)
        number += 1
    gc.collect()
    return resident() - before, len(cache)


def fill_with_entries(which: str, count: str) -> tuple[int, int]:
    keys = list(range(int(count)))
    cache = CACHES[which](len(keys))
    memguard.default_breaker().check()
    gc.collect()
    before = resident()
    for key in keys:
        cache[key] = None
    gc.collect()
    return resident() - before, len(cache)


if __name__ == "__main__":
    print(*{"bound": fill_to_the_bound, "entries": fill_with_entries}[sys.argv[1]](*sys.argv[2:]))
