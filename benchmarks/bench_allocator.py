"""
What freed memory comes back to the kernel, and what that costs in throughput, by how glibc's allocator is set.

Each run is a fresh interpreter in which many threads allocate and free; the settings take turns. Of each: the seconds,
and what is resident above the start once everything is freed, then after ``malloc_trim(0)``, then after
``memguard.release_memory()``, which also gives back the tops of the arenas. The threads are alive all the while, as
those of a server's pool are.

    none        as glibc comes
    arenas      ``memguard.limit_arenas(2)``, memguard's default
    thresholds  M_MMAP_THRESHOLD and M_TRIM_THRESHOLD fixed at 1 MiB

Measures its own interpreter, or all those that ``--pythons python3.11 python3.12 ...`` names. They need nothing
installed: the library comes from ``src``, and where NumPy is not installed its workload is left out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from measuring import NOT_INSTALLED, Report, environment_of_child, in_turns, paired, peer, read_options

import memguard

MIB = 1024**2
SOURCE = Path(__file__).resolve().parent.parent / "src"
SETTINGS = ("none", "arenas", "thresholds")
ROUNDS, QUICK_ROUNDS = 5, 2
MOST_LOST_PERCENT = 5
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_PROBE = """
import json, platform
try:
    from numpy import __version__ as numpy
except ImportError:
    numpy = None
print(json.dumps({"python": f"{platform.python_implementation()} {platform.python_version()}", "numpy": numpy}))
"""

Job: TypeAlias = Callable[[int, int], None]
"""What the thread of that number does, so many times over."""


# What the threads do.


def make_buffers(at_once: int) -> Job:
    """Return a job that has one buffer of 9 MiB at a time, touched as it is made, in *at_once* threads at most."""
    turn = threading.BoundedSemaphore(at_once)

    def job(_number: int, times: int) -> None:
        for _ in range(times):
            with turn:
                bytearray(9 * MIB)

    return job


def make_mixed() -> Job:
    """Return a job that has two buffers of random sizes at a time, touched as they are made."""

    def job(number: int, times: int) -> None:
        chance = random.Random(number)
        held: deque[bytearray] = deque(maxlen=2)
        for _ in range(times):
            held.append(bytearray(chance.randint(64 * 1024, 16 * MIB)))

    return job


def make_documents() -> Job:
    """Return a job that writes and reads documents of some 2.5 MB."""
    names = ("alpha", "beta", "gamma", "delta")
    document = [
        {"id": row, "name": f"{names[row % 4]} {row}", "score": row / 7, "tags": [*names, str(row)], "text": "x" * 580}
        for row in range(3_500)
    ]

    def job(_number: int, times: int) -> None:
        for _ in range(times):
            json.loads(json.dumps(document))

    return job


def make_arrays() -> Job:
    """Return a job that computes with arrays of 4 to 8 MiB; NumPy drops the GIL while it does."""
    numpy: Any = peer("numpy")

    def job(number: int, times: int) -> None:
        chance = random.Random(number)
        for _ in range(times):
            values = numpy.arange(chance.randint(MIB // 2, MIB), dtype=numpy.float64)
            roots = numpy.sqrt(values)
            (roots * values + roots / (values + 1.0)).sum()

    return job


@dataclass(frozen=True, slots=True)
class Workload:
    """
    What is done in threads.

    Attributes:
        times: How often each thread does it.
        quick_times: The same for seconds instead of minutes, and to warm up.
    """

    make: Callable[[], Job]
    threads: int
    times: int
    quick_times: int
    needs_numpy: bool = False


WORKLOADS = {
    "9 MiB buffers": Workload(lambda: make_buffers(12), threads=40, times=15, quick_times=2),
    "JSON of 2.5 MB": Workload(make_documents, threads=32, times=1, quick_times=1),
    "64 KiB to 16 MiB buffers": Workload(make_mixed, threads=32, times=6, quick_times=1),
    "NumPy outside the GIL": Workload(make_arrays, threads=32, times=3, quick_times=1, needs_numpy=True),
}


# In the child.


def put(setting: str) -> None:
    """Set the allocator."""
    library = ctypes.CDLL(None)
    done = True
    if setting == "arenas":
        done = memguard.limit_arenas(2)
    elif setting == "thresholds":
        done = all(library.mallopt(threshold, MIB) for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
    if not done:
        raise RuntimeError(f"the allocator did not take {setting!r}")


def child(name: str, setting: str, times: int) -> dict[str, float]:
    """Do the workload *name* in this process; return its figures."""
    memguard.release_memory  # noqa: B018 - loads what it needs before anything is measured
    put(setting)
    workload = WORKLOADS[name]
    job = workload.make()
    all_there = threading.Barrier(workload.threads)

    def work(number: int) -> None:
        all_there.wait()  # so that each thread has its share
        if times_over:
            job(number, times_over)

    times_over = 0
    at_start = memguard.memory_usage().rss_bytes
    with ThreadPoolExecutor(workload.threads) as pool:
        list(pool.map(work, range(workload.threads)))  # starts the threads
        times_over = times
        began, began_cpu = time.perf_counter(), time.process_time()
        list(pool.map(work, range(workload.threads)))
        figures = {"seconds": time.perf_counter() - began, "cpu seconds": time.process_time() - began_cpu}

        def resident() -> float:
            return (memguard.memory_usage().rss_bytes - at_start) / MIB

        figures["after"] = resident()
        ctypes.CDLL(None).malloc_trim(0)
        figures["after trim"] = resident()
        memguard.release_memory()
        figures["after release"] = resident()
        figures["arenas"] = memguard.allocator_usage(count_arenas=True).arenas or 0
    return figures


# In the parent.


class Interpreter:
    """An interpreter to measure; its compiled files are kept in the folder *compiled*."""

    def __init__(self, command: str, compiled: str) -> None:
        # Without what the user told glibc: the settings are to be what they are called.
        self._environment = {
            name: value
            for name, value in environment_of_child(compiled).items()
            if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
        } | {"PYTHONPATH": str(SOURCE)}
        self._command = command
        found = json.loads(self.run("-c", _PROBE))
        self.name: str = found["python"]
        self.numpy: str | None = found["numpy"]

    def run(self, *arguments: str) -> str:
        """Run it with *arguments*; return what it printed."""
        argv = [self._command, *arguments]
        return subprocess.run(argv, env=self._environment, stdout=subprocess.PIPE, text=True, check=True).stdout


class Run:
    """A workload in one setting, run after run."""

    def __init__(self, python: Interpreter, workload: str, setting: str, *, quick: bool) -> None:
        self._python, self._workload, self._setting, self._quick = python, workload, setting, quick
        self._runs: list[dict[str, float]] = []

    def __call__(self) -> float:
        """Run once; return the seconds. The first run, which does not count, is a short one."""
        workload = WORKLOADS[self._workload]
        times = workload.times if self._runs and not self._quick else workload.quick_times
        printed = self._python.run(__file__, "--child", self._workload, self._setting, str(times))
        self._runs.append(json.loads(printed))
        return self._runs[-1]["seconds"]

    def row(self) -> dict[str, Any]:
        """Return all that was measured in the runs that count."""
        figures = {name: [round(run[name], 4) for run in self._runs[1:]] for name in self._runs[0]}
        ranges = {
            name: {"min": min(values), "median": statistics.median(values), "max": max(values), "runs": values}
            for name, values in figures.items()
        }
        return {"python": self._python.name, "workload": self._workload, "setting": self._setting, **ranges}


class Rows(list[dict[str, Any]]):
    """The rows of the table, which a JSON file takes as they are."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(("min < median < max of the runs; resident in MiB above the start", *self._lines()))

    def _lines(self) -> Iterator[str]:
        columns = {"seconds": ".2f", "cpu seconds": ".2f", "after": ".0f", "after trim": ".0f", "after release": ".0f"}
        python = workload = ""
        for row in self:
            if row["python"] != python:
                python, workload = row["python"], ""
                yield f"\n{python:<36}{''.join(f'{column:>20}' for column in columns)}{'arenas':>8}"
            cells = (_range(row[column], how) for column, how in columns.items())
            name = "" if row["workload"] == workload else row["workload"]
            workload = row["workload"]
            arenas = row["arenas"]["median"]
            yield f"{name:<25}{row['setting']:<11}{''.join(f'{cell:>20}' for cell in cells)}{arenas:>8.0f}"


def _range(figures: dict[str, float], how: str) -> str:
    return " < ".join(format(figures[which], how) for which in ("min", "median", "max"))


def measure(report: Report, rows: Rows, python: Interpreter, *, quick: bool) -> None:
    """Add the rows of one interpreter, and hold memguard's default against glibc's."""
    report.note(f"NumPy, {python.name}", python.numpy or NOT_INSTALLED)
    for name, workload in WORKLOADS.items():
        if workload.needs_numpy and python.numpy is None:
            continue
        runs = {setting: Run(python, name, setting, quick=quick) for setting in SETTINGS}
        seconds = in_turns(runs, QUICK_ROUNDS if quick else ROUNDS)
        rows.extend(run.row() for run in runs.values())
        lost = paired(seconds["none"], seconds["arenas"], lambda none, arenas: (1 - none / arenas) * 100)
        report.target(f"throughput lost by arenas, {python.name}, {name}", lost, "%", MOST_LOST_PERCENT)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable])
    parser.add_argument("--child", nargs=3)
    own, rest = parser.parse_known_args(arguments)
    if own.child:
        name, setting, times = own.child
        print(json.dumps(child(name, setting, int(times))))
        return
    options = read_options(__doc__, rest)
    report = Report("allocator", options)
    if memguard.allocator_usage().name != "glibc":
        report.note("not measured", "the allocator here is not glibc's")
    else:
        rows = Rows()
        with tempfile.TemporaryDirectory(prefix="memguard-bench-") as compiled:
            for command in own.pythons:
                measure(report, rows, Interpreter(command, compiled), quick=options.quick)
        report.note("rows", rows)
    report.finish()


if __name__ == "__main__":
    main()
