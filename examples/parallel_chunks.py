"""
Works on blocks of bytes in a pool of threads or processes; as many chunks run at once as memory allows.

    python examples/parallel_chunks.py
    python examples/parallel_chunks.py --pool processes --blocks 2000 --max-bytes "16 MiB" --concurrency 8

A chunk is as many blocks as make `max_bytes`, which are reserved while it runs.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import memguard

BLOCK_BYTES = 256 * 1024


def blocks(count: int) -> Iterator[bytes]:
    """The source: one block after the other, as from a file or a socket."""
    for number in range(count):
        yield number.to_bytes(4, "big") * (BLOCK_BYTES // 4)


def squeeze(chunk: list[bytes]) -> int:
    """The work: how many bytes the chunk has compressed."""
    return sum(len(zlib.compress(block, 1)) for block in chunk)


def make_pool(kind: str, width: int) -> Executor:
    """Return a pool of *kind*; processes can only be handed functions that can be pickled."""
    return ProcessPoolExecutor(width) if kind == "processes" else ThreadPoolExecutor(width)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--blocks", type=int, default=400)
    parser.add_argument("--pool", choices=("threads", "processes"), default="threads")
    parser.add_argument("--max-bytes", default="16 MiB", help="of a chunk (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=8)
    options = parser.parse_args()
    memguard.default_breaker()  # before the threads: it limits glibc's arenas, too
    with make_pool(options.pool, options.concurrency) as pool:
        report = memguard.process_in_chunks(
            blocks(options.blocks),
            squeeze,
            max_bytes=options.max_bytes,
            executor=pool,
            concurrency=options.concurrency,
        )
    print(f"{report.items_done} blocks done in {len(report.results)} chunks, {sum(report.results):,} bytes squeezed")


if __name__ == "__main__":
    main()
