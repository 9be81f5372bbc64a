"""
Many threads, each with a job that needs memory: as many run at once as fit, the others wait in line.

    python examples/worker_pool.py
    python examples/worker_pool.py --jobs 400 --threads 40 --limit "300 MiB"

The pool is as wide as one likes; memory, not the number of threads, says how many jobs run.
"""

from __future__ import annotations

import argparse
import threading
from concurrent.futures import ThreadPoolExecutor

import memguard

MIB = 1024**2


class Meter:
    """How many jobs ran at once, and at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self.now -= 1


def job(number: int, meter: Meter) -> int:
    """Wait for room, up to a minute, then do the work."""
    nbytes = (1 + number % 8) * 2 * MIB
    with memguard.default_breaker().reserve(nbytes, timeout=60), meter:
        return len(bytearray(nbytes))


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=20)
    parser.add_argument("--limit", default="256 MiB", help="beside those of the kernel (%(default)s)")
    options = parser.parse_args()
    memguard.configure(limit=options.limit)  # before the threads: it limits glibc's arenas, too
    meter = Meter()
    with ThreadPoolExecutor(options.threads) as pool:
        done = list(pool.map(lambda number: job(number, meter), range(options.jobs)))
    print(f"{len(done)} jobs done, {meter.most} at once at most")


if __name__ == "__main__":
    main()
