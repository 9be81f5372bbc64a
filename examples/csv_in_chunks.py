"""
Rewrites a CSV file in chunks, under the breaker, with progress: its memory is that of a chunk, however long the file.

    python examples/csv_in_chunks.py IN.csv OUT.csv
    python examples/csv_in_chunks.py --rows 100000     # makes a file to try it with

When memory is tight chunks shrink; if even the smallest is refused, it says at which row to go on.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import memguard


def tidy(rows: list[list[str]]) -> list[list[str]]:
    """The work: blanks collapse."""
    return [[" ".join(value.split()) for value in row] for row in rows]


def show(progress: memguard.Progress) -> None:
    """Print how far it is; without a total there is no percentage."""
    print(f"{progress.done:,} rows, {progress.rate:,.0f} a second, chunks of {progress.chunk_size:,}", flush=True)


def rewrite(source: Path, target: Path) -> int:
    """Rewrite *source* as *target*; return the rows."""
    with source.open(newline="", encoding="utf-8") as read, target.open("w", newline="", encoding="utf-8") as write:
        rows, writer = csv.reader(read), csv.writer(write)
        writer.writerow(next(rows))
        report = memguard.process_in_chunks(rows, tidy, on_result=writer.writerows, on_progress=show)
    return report.items_done


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="IN.csv OUT.csv")
    parser.add_argument("--rows", type=int, default=100_000, help="of the file that is made where none is given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, memguard.measure_peak() as peak:
        source, target = options.files or (Path(folder) / "in.csv", Path(folder) / "out.csv")
        if not options.files:
            with source.open("w", encoding="utf-8") as file:
                file.write("id,name\n")
                file.writelines(f"{row},  name   {row} \n" for row in range(options.rows))
        try:
            print(f"{rewrite(source, target):,} rows done")
        except memguard.ChunksRefusedError as error:
            raise SystemExit(f"{error}; go on at row {error.report.next_index}") from None
    print(f"peak {memguard.format_bytes(peak.peak_bytes)} above the start")


if __name__ == "__main__":
    main()
