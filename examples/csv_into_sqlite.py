"""
Loads a CSV file into a SQLite database in chunks, however large it is.

    python examples/csv_into_sqlite.py IN.csv OUT.db
    python examples/csv_into_sqlite.py --rows 100000     # makes a file to try it with

Each chunk is a transaction of its own: what is done stays, and the job says at which row to go on.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import sqlite3
import tempfile
from pathlib import Path

import memguard

HEADER = ["id", "name", "city", "note", "amount"]


def make_table(path: Path, rows: int) -> None:
    """Write a table of *rows* to try it with, some 100 bytes each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(
            [number, f"name {number}", f"city {number % 977}", f"{number * 7919:060d}", number / 8]
            for number in range(rows)
        )


def load(source: Path, target: Path) -> int:
    """Load *source* into the table `rows` of *target*; return how many rows there are then."""
    with source.open(newline="", encoding="utf-8") as file, contextlib.closing(sqlite3.connect(target)) as database:
        rows = csv.reader(file)
        names = next(rows)
        # The names come from a file: quoted, they are names and nothing else.
        columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
        database.execute(f"CREATE TABLE rows ({columns})")
        insert = f"INSERT INTO rows VALUES ({', '.join('?' * len(names))})"

        def store(chunk: list[list[str]]) -> None:
            with database:
                database.executemany(insert, chunk)

        memguard.process_in_chunks(rows, store)
        count: int = database.execute("SELECT count(*) FROM rows").fetchone()[0]
    return count


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="IN.csv OUT.db")
    parser.add_argument("--rows", type=int, default=100_000, help="of the file that is made where none is given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = options.files or (Path(folder) / "in.csv", Path(folder) / "out.db")
        if not options.files:
            make_table(source, options.rows)
        try:
            print(f"{load(source, target):,} rows loaded")
        except memguard.ChunksRefusedError as error:
            raise SystemExit(f"{error}; go on at row {error.report.next_index}") from None


if __name__ == "__main__":
    main()
