"""
400 jobs in a pool of 40 threads, each of which reserves its bytes. Run in a box by the tests beside it.

    pool.py MEBIBYTES     each job takes so many
    pool.py random        64 KiB to 24 MiB, drawn anew for each
"""

from __future__ import annotations

import logging
import random
import sys
from concurrent.futures import ThreadPoolExecutor

from memguard import default_breaker

MIB = 1024**2
JOBS = 400


def job(nbytes: int) -> int:
    with default_breaker().reserve(nbytes, timeout=60):
        block = bytearray(nbytes)
        block[::4096] = b"x" * len(block[::4096])
        return len(block)


def sizes(asked: str) -> list[int]:
    if asked == "random":
        draw = random.Random(1)
        return [draw.randint(64 * 1024, 24 * MIB) for _ in range(JOBS)]
    return [int(asked) * MIB] * JOBS


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    default_breaker()
    with ThreadPoolExecutor(40) as pool:
        done = list(pool.map(job, sizes(sys.argv[1])))
    print(f"{len(done)} done")
