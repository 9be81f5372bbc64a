"""
The cache beside others: what an operation costs, alone and with four threads, what it hits, and what an entry takes.

cachetools stands there twice: bare, and with a lock around each operation, which is what its documentation asks for in
threads. Statements are unrolled over prepared keys, so the loop costs nothing.
"""

from __future__ import annotations

import asyncio
import functools
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import cachetools
from measuring import Measure, Report, in_turns, paired, peer, read_options, timed

import memguard

KEYS = [f"key:{number}" for number in range(500)]
"""Those that statements are unrolled over; caches in which all are found hold ten times as many others."""
OTHERS = [f"other:{number}" for number in range(5000)]
VALUE = b"0123456789"
ROOM = 250
"""Entries of a cache in which storing all keys in turn drops one each time."""
TTL = 600
PEERS = ("cachetools", "cachebox", "lru-dict", "moka-py", "theine", "async-lru", "numpy")
LOCKED = "cachetools and RLock"
THREADS = 4
HELD = """
import gc, sys
{imports}
keys = list(range({count}))
cache = {cache}
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
{before}
gc.collect()
before = resident()
for key in keys:
    cache[key] = None
gc.collect()
print((resident() - before) / len(keys))
"""


def unrolled(template: str, times: int, **names: Any) -> Measure:
    """Return what measures nanoseconds per *template*, run for each key as ``k``; the *names* are local variables."""
    keys = [f"k{number}" for number in range(len(KEYS))]
    locals_ = "; ".join([f"{name} = _{name}" for name in names] + [f"{', '.join(keys)} = _keys"])
    statement = "\n".join(
        template.replace("(k", f"({key}").replace("[k", f"[{key}").replace("<k>", key) for key in keys
    )
    rounds = max(1, times // len(keys))
    shared = {f"_{name}": value for name, value in names.items()}
    measure = timed(statement, rounds, before=locals_, _keys=KEYS, **shared)
    return lambda: measure() / len(keys)


def filled(cache: Any) -> Any:
    """Return *cache* with the keys in it, and many others."""
    put = cache.set if not hasattr(cache, "__setitem__") else cache.__setitem__
    for key in OTHERS + KEYS:
        put(key, VALUE)
    return cache


def mappings(size: int) -> dict[str, Any]:
    """Return a cache for so many entries from each who has one that is used like a dict."""
    found: dict[str, Any] = {"memguard": memguard.LRUCache(size), "cachetools": cachetools.LRUCache(size)}
    cachebox, lru = peer("cachebox"), peer("lru")
    if cachebox is not None:
        found["cachebox"] = cachebox.LRUCache(size)
    if lru is not None:
        found["lru-dict"] = lru.LRU(size)
    return found


def others(size: int) -> dict[str, Any]:
    """Return those that have ``get`` and ``set`` and no more."""
    moka, theine = peer("moka_py"), peer("theine")
    found: dict[str, Any] = {}
    if moka is not None:
        found["moka-py"] = moka.Moka(size, policy="lru")
    if theine is not None:
        found["theine"] = theine.Cache(size)
    return found


def on_each(caches: Mapping[str, Any], template: str, times: int, locked: Any) -> dict[str, Measure]:
    """Return what measures *template* on each ``c``, and on *locked* inside of a lock."""
    measures = {name: unrolled(template, times, c=cache, v=VALUE) for name, cache in caches.items()}
    lock = threading.RLock()
    measures[LOCKED] = unrolled(f"with lock: {template}", times, c=locked, lock=lock, v=VALUE)
    return measures


def reads(times: int) -> dict[str, dict[str, Measure]]:
    """Return what measures operations that change nothing but the order."""
    room = len(OTHERS) + len(KEYS)
    caches = {name: filled(cache) for name, cache in mappings(room).items()}
    more = {name: filled(cache) for name, cache in others(room).items()}
    empty, more_empty = mappings(room), others(room)
    locked = filled(cachetools.LRUCache(room))
    remembered = functools.lru_cache(room)(lambda key: key)
    for key in OTHERS + KEYS:
        remembered(key)
    sieve = {"memguard, sieve": filled(memguard.LRUCache(room, policy="sieve"))}
    return {
        "get hit": on_each(caches | sieve | more, "c.get(k)", times, locked)
        | {"functools.lru_cache": unrolled("c(k)", times, c=remembered)},
        "get miss": on_each(empty | more_empty, "c.get(k)", times, cachetools.LRUCache(room)),
        "c[k] hit": on_each(caches, "c[k]", times, locked),
        "k in c": on_each(caches, "<k> in c", times, locked),
        "set the same": on_each(caches, "c[k] = v", times, locked)
        | {name: unrolled("c.set(k, v)", times, c=cache, v=VALUE) for name, cache in more.items()},
    }


def writes(times: int) -> dict[str, dict[str, Measure]]:
    """Return what measures storing a new entry that another has to make room for."""
    by_bytes = {
        "memguard": memguard.LRUCache(max_bytes=ROOM * len(VALUE), sizeof=len),
        "cachetools": cachetools.LRUCache(ROOM * len(VALUE), getsizeof=len),
    }
    cachebox = peer("cachebox")
    if cachebox is not None:
        by_bytes["cachebox"] = cachebox.LRUCache(ROOM * len(VALUE), getsizeof=lambda _, value: len(value))
    locked = cachetools.LRUCache(ROOM * len(VALUE), getsizeof=len)
    return {
        "set new": on_each(mappings(ROOM), "c[k] = v", times, cachetools.LRUCache(ROOM))
        | {name: unrolled("c.set(k, v)", times, c=cache, v=VALUE) for name, cache in others(ROOM).items()},
        "set new, by bytes": on_each(by_bytes, "c[k] = v", times, locked),
    }


def timed_ones(times: int) -> dict[str, dict[str, Measure]]:
    """Return what measures caches whose entries expire."""
    room = len(OTHERS) + len(KEYS)

    def make(size: int) -> dict[str, Any]:
        found = {"memguard": memguard.LRUCache(size, ttl=TTL), "cachetools": cachetools.TTLCache(size, TTL)}
        cachebox = peer("cachebox")
        return found if cachebox is None else found | {"cachebox": cachebox.TTLCache(size, TTL)}

    caches = {name: filled(cache) for name, cache in make(room).items()}
    locked = filled(cachetools.TTLCache(room, TTL))
    return {
        "ttl, get hit": on_each(caches, "c.get(k)", times, locked),
        "ttl, get miss": on_each(make(room), "c.get(k)", times, cachetools.TTLCache(room, TTL)),
        "ttl, c[k] hit": on_each(caches, "c[k]", times, locked),
        "ttl, set the same": on_each(caches, "c[k] = v", times, locked),
        "ttl, set new": on_each(make(ROOM), "c[k] = v", times, cachetools.TTLCache(ROOM, TTL)),
    }


# ----- traces


def zipf(requests: int, keys: int, seed: int) -> list[int]:
    """Return *requests* for *keys*, the n-th as likely as 1/n."""
    weights = list(accumulate(1 / number for number in range(1, keys + 1)))
    return random.Random(seed).choices(range(keys), cum_weights=weights, k=requests)


def with_scans(trace: Sequence[int]) -> list[int]:
    """Return *trace* with two requests of each five replaced by keys that come once."""
    return [-number if number % 5 < 2 else key for number, key in enumerate(trace, 1)]


def in_threads(cache: Any, lock: threading.RLock | None, traces: Sequence[Sequence[int]]) -> Measure:
    """Return what measures nanoseconds of wall time per request: a look-up, and storing what was not there."""

    def bare(trace: Sequence[int]) -> None:
        for key in trace:
            if cache.get(key) is None:
                cache[key] = key

    def locked(trace: Sequence[int], lock: threading.RLock) -> None:
        for key in trace:
            with lock:
                value = cache.get(key)
            if value is None:
                with lock:
                    cache[key] = key

    def measure() -> float:
        work = bare if lock is None else functools.partial(locked, lock=lock)
        threads = [threading.Thread(target=work, args=(trace,)) for trace in traces]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - began) / sum(map(len, traces)) * 1e9

    return measure


def threaded(requests: int) -> dict[str, Measure]:
    """Return what measures four threads on one cache of 10,000 entries and 100,000 keys."""
    traces = [zipf(requests // THREADS, 100_000, seed) for seed in range(THREADS)]
    found = {name: in_threads(cache, None, traces) for name, cache in mappings(10_000).items() if name != "cachetools"}
    return found | {LOCKED: in_threads(cachetools.LRUCache(10_000), threading.RLock(), traces)}


def hit_ratio(get: Callable[[int], Any], put: Callable[[int, int], Any], trace: Sequence[int]) -> float:
    """Return the part of *trace* that is found."""
    hits = 0
    for key in trace:
        if get(key) is None:
            put(key, 1)
        else:
            hits += 1
    return hits / len(trace)


def hit_ratios(report: Report, requests: int) -> None:
    """Add what each finds of a trace with a room of 1,000 entries."""
    popular = zipf(requests, 100_000, 1)
    for label, trace in {"zipf": popular, "zipf with scans": with_scans(popular)}.items():
        ours = {"memguard, sieve": memguard.LRUCache(1000, policy="sieve")}
        for name, cache in (mappings(1000) | ours).items():
            report.add(f"hits, {label}, {name}", [100 * hit_ratio(cache.get, cache.__setitem__, trace)], "%")
        for name, cache in others(1000).items():
            get = (lambda key, cache=cache: cache.get(key)[0]) if name == "theine" else cache.get
            report.add(f"hits, {label}, {name}", [100 * hit_ratio(get, cache.set, trace)], "%")


# ----- memory


def held(count: int) -> dict[str, float]:
    """Return the bytes of resident memory that an entry takes beside its key and value, each in a fresh process."""
    ours = "memguard.LRUCache({count}{options})"
    check = "memguard.default_breaker().check()"
    caches = {
        "memguard": ("import memguard", ours.format(count=count, options=""), check),
        "memguard, sizeof": ("import memguard", f"memguard.LRUCache(max_bytes={count}, sizeof=lambda _: 1)", check),
        "memguard, ttl": ("import memguard", ours.format(count=count, options=f", ttl={TTL}"), check),
        "cachetools": ("import cachetools", f"cachetools.LRUCache({count})", ""),
        "cachetools, sizeof": ("import cachetools", f"cachetools.LRUCache({count}, getsizeof=lambda _: 1)", ""),
        "cachetools, ttl": ("import cachetools", f"cachetools.TTLCache({count}, {TTL})", ""),
    }
    if peer("cachebox") is not None:
        caches["cachebox"] = ("import cachebox", f"cachebox.LRUCache({count})", "")
    if peer("lru") is not None:
        caches["lru-dict"] = ("import lru", f"lru.LRU({count})", "")
    found = {}
    for name, (imports, cache, before) in caches.items():
        code = HELD.format(imports=imports, cache=cache, before=before, count=count)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found[name] = float(out.stdout)
    return found


# ----- decorators


def identity(key: str) -> str:
    """Return what is given: all of a call is then the decorator's."""
    return key


async def aidentity(key: str) -> str:
    """Return what is given, awaited."""
    return key


def awaited(fn: Callable[[str], Any], times: int) -> Measure:
    """Return what measures nanoseconds per ``await fn(key)``, unrolled ten times."""

    async def loop() -> float:
        await fn("a")
        rounds = times // 10
        began = time.perf_counter()
        for _ in range(rounds):
            await fn("a")
            await fn("a")
            await fn("a")
            await fn("a")
            await fn("a")
            await fn("a")
            await fn("a")
            await fn("a")
            await fn("a")
            await fn("a")
        return (time.perf_counter() - began) / rounds / 10 * 1e9

    return lambda: asyncio.run(loop())


def decorated(times: int) -> dict[str, dict[str, Measure]]:
    """Return what measures a hit through each decorator."""
    room = len(KEYS)
    plain: dict[str, Callable[[str], Any]] = {
        "memguard": memguard.cached(max_entries=room)(identity),
        "memguard, ttl": memguard.cached(max_entries=room, ttl=TTL)(identity),
        "cachetools": cachetools.cached(cachetools.LRUCache(room))(identity),
        LOCKED: cachetools.cached(cachetools.LRUCache(room), lock=threading.RLock())(identity),
        "functools.lru_cache": functools.lru_cache(room)(identity),
    }
    # async-lru forgets when the event loop is another one, and each round has one of its own: it warms up there.
    tasks: dict[str, Callable[[str], Any]] = {"memguard": memguard.cached(max_entries=room)(aidentity)}
    tasks["no cache"] = aidentity
    cachebox, async_lru = peer("cachebox"), peer("async_lru")
    if cachebox is not None:
        plain["cachebox"] = cachebox.cached(cachebox.LRUCache(room))(identity)
        tasks["cachebox"] = cachebox.cached(cachebox.LRUCache(room))(aidentity)
    if async_lru is not None:
        tasks["async-lru"] = async_lru.alru_cache(room)(aidentity)
    for fn in plain.values():
        for key in KEYS:
            fn(key)
    return {
        "cached, hit": {name: unrolled("f(k)", times, f=fn) for name, fn in plain.items()},
        "cached, await hit": {name: awaited(fn, times) for name, fn in tasks.items()},
    }


def weighed(times: int) -> dict[str, Measure]:
    """Return what measures the sizing of values, as a cache without ``sizeof`` does for each that it stores."""

    def record(number: int) -> dict[str, Any]:
        return {"id": number, "name": f"name of {number}", "score": number / 7} | {f"field {n}": n for n in range(7)}

    values = {"a string": "a" * 50, "a record of 10": record(5000), "1,000 records": [record(n) for n in range(1000)]}
    return {
        f"deep_sizeof, {name}": timed("size(v)", max(20, times // 200), size=memguard.deep_sizeof, v=value)
        for name, value in values.items()
    }


CLAIMS: dict[str, dict[str, float]] = {
    "get hit": {"cachetools": 0.45, LOCKED: 0.25},
    "c[k] hit": {"cachetools": 0.85, LOCKED: 0.35},
    "set new, by bytes": {LOCKED: 0.55},
    "ttl, get hit": {"cachetools": 0.2, LOCKED: 1.0},
    "ttl, c[k] hit": {"cachetools": 0.75, LOCKED: 1.0},
    "4 threads": {LOCKED: 0.35},
    "cached, hit": {LOCKED: 0.25, "cachebox": 0.4},
    "cached, await hit": {"async-lru": 0.35},
}
"""How much of what the other takes an operation may take, at most; no operation more than cachetools in a lock."""


def claims(report: Report, operation: str, figures: Mapping[str, list[float]]) -> None:
    """Hold the figures of *operation* against what is claimed of it."""
    for other, bound in CLAIMS.get(operation, {LOCKED: 1.0}).items():
        if other in figures:
            ratio = paired(figures["memguard"], figures[other], lambda ours, theirs: ours / theirs)
            report.target(f"{operation}, of {other}", ratio, "x", bound)


def main() -> None:
    """Measure all of it."""
    options = read_options(__doc__)
    warnings.filterwarnings("ignore", "alru_cache detected event loop change")
    report = Report("cache", options, PEERS)
    times, rounds = (5_000, 3) if options.quick else (50_000, 15)
    operations = reads(times) | writes(times) | timed_ones(times) | decorated(times)
    for operation, measures in operations.items():
        figures = in_turns(measures, rounds)
        report.add_all(
            {f"{operation}, {name}": each for name, each in figures.items()}, "ns", versus=f"{operation}, memguard"
        )
        claims(report, operation, figures)
    figures = in_turns(threaded(20_000 if options.quick else 200_000), 2 if options.quick else 7)
    report.add_all({f"4 threads, {name}": each for name, each in figures.items()}, "ns", versus="4 threads, memguard")
    claims(report, "4 threads", figures)
    report.add_all(in_turns(weighed(times), rounds), "ns")
    hit_ratios(report, 20_000 if options.quick else 300_000)
    if sys.platform == "linux":
        each = held(50_000 if options.quick else 1_000_000)
        report.add_all({f"an entry, {name}": [nbytes] for name, nbytes in each.items()}, "B")
        for kind in ("", ", sizeof", ", ttl"):
            claim = f"an entry{kind or ', by entries'}, beside cachetools"
            report.target(claim, each[f"memguard{kind}"] / each[f"cachetools{kind}"], "x", 1.0)
    report.finish()


if __name__ == "__main__":
    main()
