"""
Fill a cache whose bound is far above the memory limit; in a box of 300 MiB, in a process of its own.

Usage: filling.py WAY EACH TOTAL - bytes of each value, and of all. WAY is "reserve", "plain", or "threads": four of
them, plain.
"""

from __future__ import annotations

import sys
import threading

import memguard

way, each, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
breaker = memguard.default_breaker()
cache: memguard.LRUCache[int, bytearray] = memguard.LRUCache(max_bytes="1 GiB")
refused = []


def reserve(numbers: range) -> None:
    for number in numbers:
        try:
            with breaker.reserve(each):
                cache[number] = bytearray(b"x") * each
        except memguard.MemoryCircuitBreakerError as error:
            refused.append(error)
            print(number, error, file=sys.stderr)


def plain(numbers: range) -> None:
    for number in numbers:
        cache[number] = bytearray(b"x") * each


count = total // each
if way == "threads":
    threads = [threading.Thread(target=plain, args=(range(start, count, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    {"reserve": reserve, "plain": plain}[way](range(count))
used = memguard.memory_usage().used_bytes
print(f"refused {len(refused)}, {len(cache)} entries, {cache.total_bytes >> 20} MiB of {used >> 20} MiB")
