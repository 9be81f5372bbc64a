"""
A service on an event loop that gets more requests at once than fit: those that find no room in time get a 503.

    python examples/bursting_service.py
    python examples/bursting_service.py --requests 200 --need "20 MiB" --patience 30

Each request reserves what it is about to need. Without that all of them would begin at once: 100 times 15 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter

import memguard


async def handle(need: int, patience: float) -> tuple[int, dict[str, str]]:
    """Answer one request: the status and the headers."""
    try:
        async with memguard.default_breaker().reserve(need, timeout=patience):
            body = await asyncio.to_thread(bytearray, need)  # the work, and its memory
            await asyncio.sleep(0.01)
            return 200, {"Content-Length": str(len(body))}
    except memguard.ReservationTooLargeError:
        return 413, {}
    except memguard.MemoryCircuitBreakerError as error:
        return 503, {"Retry-After": str(max(1, round(error.retry_after or 1)))}


async def burst(requests: int, need: int, patience: float) -> Counter[int]:
    """Send all *requests* at once; return how many got which status."""
    answers = await asyncio.gather(*(handle(need, patience) for _ in range(requests)))
    return Counter(status for status, _headers in answers)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--need", type=memguard.parse_bytes, default="15 MiB", help="memory of a request (%(default)s)")
    parser.add_argument("--patience", type=float, default=0.05, help="seconds that a request waits (%(default)s)")
    parser.add_argument("--limit", default="256 MiB", help="beside those of the kernel (%(default)s)")
    options = parser.parse_args()
    breaker = memguard.configure(limit=options.limit)  # early: it limits glibc's arenas, too
    counts = asyncio.run(burst(options.requests, options.need, options.patience))
    print(f"200: {counts[200]}, 413: {counts[413]}, 503: {counts[503]}")
    print(breaker.describe())


if __name__ == "__main__":
    main()
