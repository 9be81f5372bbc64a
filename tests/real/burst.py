"""
A burst: 60 tasks at once, each of which takes 15 MiB for a while. Run in a box by the tests beside it.

    burst.py plain      nobody is asked
    burst.py reserve    each reserves its bytes first
    burst.py threads    the same in 60 threads
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time

JOBS = 60
JOB_BYTES = 15 * 1024**2


def take() -> bytearray:
    """Return the bytes of one job, every page of them touched."""
    block = bytearray(JOB_BYTES)
    block[::4096] = b"x" * len(block[::4096])
    return block


async def plain_job() -> int:
    block = take()
    await asyncio.sleep(0.2)
    return len(block)


async def reserved_job() -> int:
    from memguard import default_breaker

    async with default_breaker().reserve(JOB_BYTES, timeout=None):
        return await plain_job()


def threaded_job(done: list[int]) -> None:
    from memguard import default_breaker

    with default_breaker().reserve(JOB_BYTES, timeout=None):
        block = take()
        time.sleep(0.2)
        done.append(len(block))


async def all_tasks(job) -> int:
    return len(await asyncio.gather(*(job() for _ in range(JOBS))))


def all_threads() -> int:
    from memguard import default_breaker

    default_breaker()  # early, so that threads yet to start share two arenas
    done: list[int] = []
    threads = [threading.Thread(target=threaded_job, args=(done,)) for _ in range(JOBS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done)


if __name__ == "__main__":
    way = sys.argv[1]
    count = all_threads() if way == "threads" else asyncio.run(all_tasks(plain_job if way == "plain" else reserved_job))
    print(f"{count} done")
