"""
What a whole reading of this machine costs: the process, every cgroup level, the limits and the host.

A level that sets no limit is only asked for one; a level that does is asked for its use as well. So where a memory
cgroup can be made, the same is measured once more in a child that stands in one with a limit of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import psutil
from measuring import Measure, Report, in_turns, peer, read_options, timed

import memguard
from memguard.cli._box import make_box
from memguard.sampling import LevelFiles, own_place

_BOX_BYTES = 1024**3
_IN_BOX = "MEMGUARD_BENCH_IN_BOX"
_OURS = ("memory_usage()", "breaker.tick()")


def contenders(times: int) -> dict[str, Measure]:
    """Return what is measured."""
    breaker = memguard.MemoryCircuitBreaker()
    found = {
        "memory_usage()": timed("memory_usage()", times, memory_usage=memguard.memory_usage),
        "breaker.tick()": timed("breaker.tick()", times, breaker=breaker),
        "psutil.Process().memory_info()": timed("psutil.Process().memory_info()", times, psutil=psutil),
        "psutil.virtual_memory()": timed("psutil.virtual_memory()", times, psutil=psutil),
    }
    if proclimits := peer("proclimits"):
        found["proclimits.get_memory_budget()"] = timed("proclimits.get_memory_budget()", times, proclimits=proclimits)
    return found


def levels() -> tuple[int, int]:
    """Return how many cgroup levels can be seen from here, and how many of them set a limit."""
    place = own_place()
    if place is None:
        return 0, 0
    files = [LevelFiles(place.version, directory, "") for directory in place.directories]
    limited = sum(level.limit() is not None for level in files)
    for level in files:
        level.close()
    return len(files), limited


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of this process where it stands, in microseconds, and its levels."""
    times, rounds = (200, 5) if options.quick else (1_000, 25)
    got = in_turns(contenders(times), rounds)
    return {
        "levels": levels(),
        "figures": {label: [figure / 1000 for figure in figures] for label, figures in got.items()},
    }


def measured_in_box(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the figures of a child in a memory cgroup of its own; None where none can be made."""
    try:
        with make_box(_BOX_BYTES, kind="cgroup") as box:
            argv = box.command([sys.executable, __file__, *(["--quick"] if options.quick else [])])
            child = subprocess.run(argv, env=os.environ | {_IN_BOX: "1"}, capture_output=True, text=True, check=True)
    except OSError:
        return None
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def add(report: Report, where: str, got: dict[str, Any]) -> None:
    """Add the figures that were *got* *where*, and hold them against what is claimed per level."""
    seen, limited = got["levels"]
    report.note(f"cgroup levels{where}", f"{seen}, of which {limited} set a limit")
    figures: dict[str, Sequence[float]] = {f"{label}{where}": values for label, values in got["figures"].items()}
    report.add_all(figures, "us", versus=f"memory_usage(){where}")
    for label in _OURS:
        per_level = statistics.median(figures[f"{label}{where}"]) / max(1, seen)
        report.target(f"{label}{where}, per level", per_level, "us", 10)


def main() -> None:
    """Measure and report."""
    options = read_options(__doc__)
    if os.environ.get(_IN_BOX):
        print(json.dumps(measured(options)))
        return
    report = Report("reading", options, ("psutil", "proclimits"))
    add(report, "", measured(options))
    boxed = measured_in_box(options)
    if boxed is None:
        report.note("in a cgroup of its own", "not measured: none can be made here")
    else:
        add(report, " in a box", boxed)
    report.finish()


if __name__ == "__main__":
    main()
