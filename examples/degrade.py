"""
Less instead of nothing: what a service can do before it refuses, and a job when it is refused.

    python examples/degrade.py
    python examples/degrade.py --rows 5000

Memory follows a script here, so that each step is to be seen: half full, then tight, then over the line.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import memguard
from memguard.testing import FakeClock, ScriptedSampler

clock = FakeClock()
memory = ScriptedSampler([0.5], clock=clock)
breaker = memguard.MemoryCircuitBreaker(sampler=memory, clock=clock, relief=False)


def memory_is(used: float) -> None:
    """Let memory be *used*, as part of the limit, and the breaker's reading be stale."""
    memory.then(used)
    clock.advance(1)


def rows(count: int) -> Iterator[int]:
    """Yield rows; just after half of them something else takes the memory."""
    for row in range(count):
        if row == count // 2 + 1:
            memory_is(0.9)
        yield row


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    batch = memguard.AdaptiveBatchSize((100, 50, 25))
    for used in (0.5, 0.75, 0.9):
        memory_is(used)
        results = breaker.by_level(50, 25, 10)
        print(f"{used:.0%} used, {breaker.level.name}: {results} results, batches of {batch.observe(breaker.level)}")

    memory_is(0.5)
    breaker.tick()
    report = memguard.process_in_chunks(
        rows(options.rows), len, chunk_size=options.rows // 10, breaker=breaker, on_pressure="partial"
    )
    print(f"{report.items_done} of {options.rows} rows exported, go on at row {report.next_index}")
    print("\n".join(report.warnings))


if __name__ == "__main__":
    main()
