"""
Submits jobs to a pool as fast as memory allows: each holds its bytes from before it is submitted until it is done.

    python examples/submit_jobs.py
    python examples/submit_jobs.py --jobs 400 --need "20 MiB" --limit "256 MiB"

The bytes are taken here and given back by a callback in another thread: that is no `with`, so it is `acquire`.
"""

from __future__ import annotations

import argparse
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import memguard

MIB = 1024**2


def job(number: int, nbytes: int) -> str:
    """Do the work, which takes *nbytes*."""
    block = bytearray(b"%04d" % (number % 10_000)) * (nbytes // 4)
    return hashlib.sha256(block).hexdigest()


def submit(pool: ThreadPoolExecutor, number: int, nbytes: int) -> Future[str]:
    """Wait for room, then submit a job that gives its bytes back when it ends, however it ends."""
    held = memguard.acquire(nbytes, timeout=None)
    try:
        future = pool.submit(held.run, job, number, nbytes)
    except BaseException:
        held.release()
        raise
    future.add_done_callback(lambda _: held.release())
    return future


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--need", type=memguard.parse_bytes, default="20 MiB", help="memory of a job (%(default)s)")
    parser.add_argument("--limit", default="256 MiB", help="beside those of the kernel (%(default)s)")
    options = parser.parse_args()
    breaker = memguard.configure(limit=options.limit)  # before the threads: it limits glibc's arenas, too
    with ThreadPoolExecutor(options.threads) as pool:
        futures = [submit(pool, number, options.need) for number in range(options.jobs)]
        done = {future.result() for future in as_completed(futures)}
    print(f"{len(done)} jobs done, {breaker.statistics().reserved_bytes} bytes still held")


if __name__ == "__main__":
    main()
