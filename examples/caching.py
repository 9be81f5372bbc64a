"""
Three caches with bounds that mean memory: a function, a method and a mapping.

    python examples/caching.py
    python examples/caching.py --calls 100000
"""

from __future__ import annotations

import argparse
import random

import memguard
from memguard import LRUCache, cached

pages: LRUCache[str, bytes] = LRUCache(500, max_bytes="25 MiB", ttl=30 * 60, name="pages")


@cached(LRUCache(1000, max_bytes="50 MiB", ttl=60 * 60, name="profiles"))
def profile(user: int) -> dict[str, object]:
    """Return what is slow to look up."""
    return {"id": user, "name": f"user {user}", "friends": list(range(user % 50))}


class Catalogue:
    """Products and their prices."""

    @cached(max_entries=5000, max_bytes="100 MiB", ttl=24 * 60 * 60)
    def price(self, product: int) -> float:
        """Return what is slow to compute."""
        return product * 1.19


def page(user: int) -> bytes:
    """Return a page, made where there is none."""
    key = f"/users/{user}"
    found: bytes | None = pages.get(key)
    if found is None:
        found = pages[key] = repr(profile(user)).encode() * 100
    return found


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000)
    chance, catalogue = random.Random(1), Catalogue()
    for _ in range(parser.parse_args().calls):
        number = int(chance.paretovariate(0.5)) % 3000
        page(number)
        catalogue.price(number)
    counts = pages.statistics()
    held = memguard.format_bytes(counts.total_bytes)
    print(f"pages: {counts.entries} held, {held} of 25 MiB, {counts.hit_ratio:.0%} of look-ups found")
    print(f"profiles: {profile.cache_info()}")


if __name__ == "__main__":
    main()
