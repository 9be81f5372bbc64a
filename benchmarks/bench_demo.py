"""
The demo's job done both ways, with as much memory as they like: seconds and peak, for one table and one of ten times
the rows (which only memguard's way is asked to do).

Each run is a child process. Its peak is held against that of an interpreter that does nothing, so what memguard's own
modules take is in it. Time is that of the whole child, start to end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import Report, environment_of_child, in_turns, paired, read_options

from memguard import format_bytes, memory_usage
from memguard.cli._demo_data import HEADLINE_ROWS, write_contacts

MIB = 1024**2
_BARE = """
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(int(line.split()[1]) * 1024)
"""


class Way:
    """One way to do the job with one table, run after run."""

    def __init__(self, way: str, source: Path, rows: int) -> None:
        self._way, self._source, self._rows = way, source, rows
        self._environment = environment_of_child(str(source.parent / "compiled"))
        self.peaks_mib: list[float] = []
        """The most that was resident, interpreter and all."""
        self.growths_mib: list[float] = []
        """The most above what was resident when the job began, as the child itself tells."""

    def __call__(self) -> float:
        """Do the job once; return the seconds."""
        target = self._source.with_name(f"{self._way}.out")
        argv = [sys.executable, "-m", "memguard.cli._demo_jobs", self._way, str(self._source), str(target)]
        began = time.perf_counter()
        child = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        target.unlink()
        last = json.loads(child.stdout.splitlines()[-1])
        if last["rows"] != self._rows:
            raise RuntimeError(f"{self._way}: {last['rows']:,} rows of {self._rows:,} were done")
        self.peaks_mib.append((last["start_bytes"] + last["peak_bytes"]) / MIB)
        self.growths_mib.append(last["peak_bytes"] / MIB)
        return seconds


def bare_mib() -> float:
    """Return the peak of an interpreter that does nothing."""
    child = subprocess.run([sys.executable, "-c", _BARE], capture_output=True, text=True, check=True)
    return int(child.stdout) / MIB


def disk() -> str | None:
    """Return where gigabytes can go; None for the usual folder for temporary files, which may be kept in memory."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else None


def table(folder: Path, rows: int) -> Path:
    """Make a table of *rows* rows."""
    path = folder / f"contacts-{rows}.csv"
    write_contacts(path, rows)
    return path


def measure(report: Report, folder: Path, rows: int, rounds: int, rounds_of_ten: int) -> None:
    """Run the ways in turns, then memguard's with ten times the rows."""
    source = table(folder, rows)
    report.note("table", f"{rows:,} rows, {format_bytes(source.stat().st_size)}; then 10 times as many")
    naive, ours = Way("naive", source, rows), Way("memguard", source, rows)
    got = in_turns({"naive": naive, "memguard": ours}, rounds)
    source.unlink()
    tenfold = Way("memguard", table(folder, rows * 10), rows * 10)
    seconds_of_ten = [tenfold() for _ in range(rounds_of_ten)]
    # Without the round that warmed up, and compiled.
    kept_of = {naive: rounds, ours: rounds, tenfold: rounds_of_ten}

    report.add("seconds, naive", got["naive"], "s", versus="seconds, memguard")
    report.add("seconds, memguard", got["memguard"], "s")
    report.add("seconds, memguard, 10 x rows", seconds_of_ten, "s", versus="seconds, memguard")
    bare = statistics.median(bare_mib() for _ in range(5))
    peaks = {way: [peak - bare for peak in way.peaks_mib[-kept:]] for way, kept in kept_of.items()}
    report.add("peak of a bare interpreter", [bare], "MiB")
    report.add("peak above it, naive", peaks[naive], "MiB", versus="peak above it, memguard")
    report.add("peak above it, memguard", peaks[ours], "MiB")
    report.add(
        "peak above its own start, memguard", ours.growths_mib[-rounds:], "MiB", versus="peak above it, memguard"
    )
    report.add("peak above it, memguard, 10 x rows", peaks[tenfold], "MiB", versus="peak above it, memguard")

    once, ten = statistics.median(peaks[ours]), statistics.median(peaks[tenfold])
    report.target("peak above a bare interpreter", once, "MiB", 24)
    report.target("peak with 10 x the rows, difference", abs(ten - once), "MiB", 4)
    slower = paired(got["memguard"], got["naive"], lambda with_, without: with_ / without)
    report.target("time against the naive way", slower, "x", 1)


def main() -> None:
    """Measure and report."""
    options = read_options(__doc__)
    report = Report("demo", options)
    report.note("room at the start", format_bytes(memory_usage().headroom_bytes))
    with tempfile.TemporaryDirectory(prefix="memguard-bench-", dir=disk()) as folder:
        if options.quick:
            measure(report, Path(folder), HEADLINE_ROWS // 10, rounds=2, rounds_of_ten=1)
        else:
            measure(report, Path(folder), HEADLINE_ROWS, rounds=5, rounds_of_ten=2)
    report.finish()


if __name__ == "__main__":
    main()
