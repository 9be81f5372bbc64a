"""
How long an event loop keeps others waiting while rows are walked, and what giving way costs.

The rows are those of the demo, made in memory; each is normalised, as plain work. Meanwhile a ticker sleeps for 1 ms
and notes how much later it wakes. Six walkers share one loop and a sixth of the rows each. What is lost is measured
without a ticker, on many short walks in turns with one that never gives way.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from measuring import Measure, Report, in_turns, paired, read_options

from memguard import LoopPacer
from memguard.cli._demo_data import HEADLINE_ROWS, write_contacts
from memguard.cli._demo_jobs import Row, normalise, open_rows

TICK_SECONDS = 0.001
_POOL = 1009
"""As many rows as differ; the number before each counts on."""

Walk: TypeAlias = Callable[[Iterator[Row]], Awaitable[None]]


def work(row: Row) -> Row:
    """Do what the demo does to a row."""
    return [normalise(value) for value in row]


async def never(rows: Iterator[Row]) -> None:
    """Walk *rows* without giving way."""
    for row in rows:
        work(row)


async def sliced(rows: Iterator[Row]) -> None:
    """Walk *rows* in the slices of a pacer in its defaults."""
    async with LoopPacer() as pacer:
        async for part in pacer.slices(rows):
            for row in part:
                work(row)


async def paced(rows: Iterator[Row]) -> None:
    """Walk *rows* with a tick of a pacer in its defaults after each."""
    async with LoopPacer() as pacer:
        for row in rows:
            work(row)
            await pacer.tick()


async def each_row(rows: Iterator[Row]) -> None:
    """Walk *rows*, giving way after each."""
    for row in rows:
        work(row)
        await asyncio.sleep(0)


async def each_hundred(rows: Iterator[Row]) -> None:
    """Walk *rows*, giving way after each hundredth."""
    for number, row in enumerate(rows):
        work(row)
        if number % 100 == 0:
            await asyncio.sleep(0)


WALKS: dict[str, Walk] = {
    "slices": sliced,
    "tick": paced,
    "sleep(0) each row": each_row,
    "sleep(0) each 100 rows": each_hundred,
}


def pool_of_rows() -> list[Row]:
    """Return the rows that the table of the demo repeats."""
    with tempfile.TemporaryDirectory(prefix="memguard-bench-") as folder:
        path = Path(folder, "contacts.csv")
        write_contacts(path, _POOL)
        with open_rows(path) as rows:
            next(rows)
            return list(rows)


def generate(pool: list[Row], count: int) -> Iterator[Row]:
    """Yield *count* rows, one at a time."""
    for number in range(count):
        _, *rest = pool[number % _POOL]
        yield [str(number + 1), *rest]


async def tick(lags: list[float]) -> None:
    """Note in *lags*, in milliseconds, how much too late this task wakes, until it is cancelled."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(TICK_SECONDS)
        lags.append((time.perf_counter() - began - TICK_SECONDS) * 1000)


async def lags_during(walks: list[Awaitable[None]]) -> list[float]:
    """Return the ticker's lags while *walks* run together."""
    lags: list[float] = []
    ticker = asyncio.create_task(tick(lags))
    await asyncio.sleep(TICK_SECONDS * 10)
    lags.clear()
    await asyncio.gather(*walks)
    # The lag that the last slice caused is one, too.
    await asyncio.sleep(TICK_SECONDS)
    ticker.cancel()
    return lags


class Lags:
    """What one way of walking does to the ticker, run after run."""

    def __init__(self, walk: Walk | None, walkers: int, pool: list[Row], rows: int) -> None:
        self._walk, self._walkers, self._pool, self._rows = walk, walkers, pool, rows
        self.middle: list[float] = []
        self.late: list[float] = []
        self.latest: list[float] = []

    def __call__(self) -> float:
        """Walk once; return the seconds."""
        began = time.perf_counter()
        lags = asyncio.run(lags_during(self._walks()))
        seconds = time.perf_counter() - began
        self.middle.append(statistics.median(lags))
        self.late.append(statistics.quantiles(lags, n=100, method="inclusive")[98] if len(lags) > 1 else lags[0])
        self.latest.append(max(lags))
        return seconds

    def _walks(self) -> list[Awaitable[None]]:
        if self._walk is None:
            return [asyncio.sleep(1)]
        rows = self._rows // self._walkers
        return [self._walk(generate(self._pool, rows)) for _ in range(self._walkers)]


def lagging(pool: list[Row], rows: int) -> dict[str, Lags]:
    """Return the ways of walking, by what they are called in the table."""
    found = {"idle loop": Lags(None, 1, pool, rows), "never giving way": Lags(never, 1, pool, rows)}
    for walkers in (1, 6):
        for name, walk in WALKS.items():
            found[f"{walkers} x {name}"] = Lags(walk, walkers, pool, rows)
    return found


def walking(walk: Walk, pool: list[Row], rows: int) -> Measure:
    """Return what measures milliseconds for *rows*, nothing else being on the loop."""

    async def run() -> float:
        began = time.perf_counter()
        await walk(generate(pool, rows))
        return (time.perf_counter() - began) * 1000

    return lambda: asyncio.run(run())


def report_lags(report: Report, pool: list[Row], rows: int, rounds: int) -> None:
    """Measure how late the ticker is."""
    ways = lagging(pool, rows)
    in_turns(ways, rounds)
    for name, lags in ways.items():
        kept = slice(1, None)  # without the round that warmed up
        report.add(f"lag p50, {name}", lags.middle[kept], "ms")
        report.add(f"lag p99, {name}", lags.late[kept], "ms")
        report.add(f"lag max, {name}", lags.latest[kept], "ms")
    for name in ("slices", "tick"):
        one, six = ways[f"1 x {name}"], ways[f"6 x {name}"]
        report.target(f"99th percentile of the lag, one walker, {name}", statistics.median(one.late[1:]), "ms", 3)
        report.target(f"median lag, six walkers at once, {name}", statistics.median(six.middle[1:]), "ms", 5)


def report_losses(report: Report, pool: list[Row], rows: int, rounds: int) -> None:
    """Measure what giving way costs; never giving way stands there twice, to show what is noise."""
    base = f"{rows:,} rows, never giving way"
    again = f"{base}, again"
    walks = {base: never, again: never} | {f"{rows:,} rows, {name}": walk for name, walk in WALKS.items()}
    got = in_turns({name: walking(walk, pool, rows) for name, walk in walks.items()}, rounds)
    report.add_all(got, "ms", versus=base)

    def lost(name: str) -> float:
        return paired(got[name], got[base], lambda with_, without: (with_ / without - 1) * 100)

    report.note("lost between the two that never give way", f"{lost(again):.2g} %")
    report.target("throughput lost to slices", lost(f"{rows:,} rows, slices"), "%", 4)
    report.target("throughput lost to a tick after each row", lost(f"{rows:,} rows, tick"), "%", 7)


def main() -> None:
    """Measure and report."""
    options = read_options(__doc__)
    report = Report("pacing", options)
    pool = pool_of_rows()
    report_lags(report, pool, 10_000 if options.quick else HEADLINE_ROWS, 1 if options.quick else 3)
    report_losses(report, pool, 1_000 if options.quick else 4_000, 20 if options.quick else 200)
    report.finish()


if __name__ == "__main__":
    main()
