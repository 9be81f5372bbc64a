"""
What ``import memguard`` costs in a fresh interpreter, beside psutil, pybreaker and cachetools.

The figure is the cumulative one of ``-X importtime``; nothing is subtracted from it. Since memguard's names load when
they are first used, what a program pays that does use them stands beside it, timed by a clock. Compiled files are kept
aside, made by a first round that does not count: as after an installation, whatever the environment says.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import TypeAlias

from measuring import Measure, Report, environment_of_child, in_turns, peer, read_options

PEERS = ("psutil", "pybreaker", "cachetools")
USES = {
    "clock: import memguard": "import memguard",
    "clock: breaker made, used": "import memguard; memguard.default_breaker().check()",
    "clock: all names used": "from memguard import *",
    "clock: import psutil": "import psutil",
    "clock: import asyncio": "import asyncio",
}


Run: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]


def imported(run: Run, module: str) -> Measure:
    """Return what measures milliseconds for *module*, as -X importtime tells them."""
    return lambda: cumulative(run("-X", "importtime", "-c", f"import {module}").stderr, module)


def cumulative(lines: str, module: str) -> float:
    """Return the milliseconds of *module* with all that it imports, of the *lines* that -X importtime wrote."""
    for line in lines.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[2].strip() == module:
            return int(fields[1]) / 1000
    raise ValueError(f"-X importtime says nothing of {module}")


def clocked(run: Run, code: str) -> Measure:
    """Return what measures milliseconds for *code*, at the start of a program."""
    whole = f"from time import perf_counter as now; began = now(); {code}; print((now() - began) * 1000)"
    return lambda: float(run("-c", whole).stdout)


def interpreter(compiled: str) -> Run:
    """Return what runs a fresh interpreter that keeps its compiled files in the folder *compiled*."""
    environment = environment_of_child(compiled)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)

    return run


def main() -> None:
    """Measure and report."""
    options = read_options(__doc__)
    report = Report("import", options, PEERS)
    with tempfile.TemporaryDirectory(prefix="memguard-bench-") as compiled:
        run = interpreter(compiled)
        contenders = {f"import {name}": imported(run, name) for name in ("memguard", *filter(peer, PEERS))}
        contenders |= {label: clocked(run, code) for label, code in USES.items()}
        got = in_turns(contenders, 5 if options.quick else 40)
    report.add_all(got, "ms", versus="import memguard")
    report.target("import memguard", statistics.median(got["import memguard"]), "ms", 15)
    report.finish()


if __name__ == "__main__":
    main()
