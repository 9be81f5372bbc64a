"""
The job of the demo, done two ways: ``python -m memguard.cli._demo_jobs naive|memguard IN OUT``.

A child process of the demo runs it, under the limit. It tells its progress on standard output as JSON lines:
``{"done": 1000, "total": null}``, at the end ``{"rows": …, "peak_bytes": …, "start_bytes": …, "seconds": …}``.
Both ways normalise alike and produce the same CSV; the naive one wraps it into JSON, as a client of an API would.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

from memguard.sampling import PeakMeasurement, measure_peak, status_bytes

Row: TypeAlias = list[str]
Tell: TypeAlias = Callable[[int], None]

MEMORY_ERROR_STATUS = 3
"""Exit status after a MemoryError: what a limit on the process, rather than on its group, ends in."""

_NOTHING = frozenset({"", "-", "n/a", "#n/a", "na", "nan", "null", "none"})
_LONGEST_NOTHING = max(map(len, _NOTHING))
_SNIFF_CHARACTERS = 64 * 1024
_FIELD_LIMIT = 16 * 1024 * 1024
"""Room for a long note; a quote that nobody closes is an error before it swallows the file."""

_SYNC_BYTES = 8 * 1024 * 1024
"""Pages of output count as used until they are written, and cgroup v1 does not slow their writer down."""

_TELL_SECONDS = 0.1
_CHUNK_ROWS = 1000


def normalise(value: str) -> str:
    """Return *value* trimmed, its runs of blanks made one; empty where it says that there is nothing."""
    text = " ".join(value.split())
    if len(text) <= _LONGEST_NOTHING and text.lower() in _NOTHING:
        return ""
    return text


def snake_case(name: str) -> str:
    """Return a column's *name* in lower case, words joined by underscores: ``"First Name"``, ``"firstName"``."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return "_".join(re.findall(r"[^\W_]+", parted)).lower() or "column"


def normalise_header(names: Sequence[str]) -> Row:
    """Return *names* in snake case; one that came up before gets the next free number."""
    taken: dict[str, None] = {}
    for name in map(snake_case, names):
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        taken[unique] = None
    return list(taken)


def sniff_delimiter(sample: str) -> str:
    """Return what separates fields in *sample*; a comma where that cannot be told."""
    # A sample that ends amid a row misleads the sniffer.
    whole = sample[: sample.rfind("\n") + 1] or sample
    try:
        return csv.Sniffer().sniff(whole, delimiters=",;\t|").delimiter
    except csv.Error:
        return ","


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[Iterator[Row]]:
    """
    Open a CSV file in UTF-8, with or without a byte order mark; bytes that are not UTF-8 come through unchanged.

    Only the delimiter is sniffed: what the sniffer says of quotes holds for its sample, not for the rest of the file.
    """
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            delimiter = sniff_delimiter(file.read(_SNIFF_CHARACTERS))
            file.seek(0)
            # A blank line is not a row, to csv.DictReader neither.
            yield (row for row in csv.reader(file, delimiter=delimiter) if row)
    finally:
        csv.field_size_limit(before)


def naive(source: Path, target: Path, tell: Tell) -> int:
    """Load everything, normalise, make one string of it, and JSON of that. Return the rows."""
    with open_rows(source) as rows:
        header = normalise_header(next(rows, []))
        records: list[dict[str | None, str | Row]] = []
        for row in rows:
            records.append(_record(header, row))
            tell(len(records))
    records = [_normalise_record(record) for record in records]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows(_fields(record) for record in records)
    payload = json.dumps({"rows": len(records), "csv": text.getvalue()})
    target.write_text(payload, encoding="utf-8")
    return len(records)


def _record(header: Row, row: Row) -> dict[str | None, str | Row]:
    """Return *row* as csv.DictReader does: more fields than columns under None; fewer leave keys out."""
    record: dict[str | None, str | Row] = dict(zip(header, row, strict=False))
    if len(row) > len(header):
        record[None] = row[len(header) :]
    return record


def _normalise_record(record: dict[str | None, str | Row]) -> dict[str | None, str | Row]:
    return {
        key: normalise(value) if isinstance(value, str) else list(map(normalise, value))
        for key, value in record.items()
    }


def _fields(record: dict[str | None, str | Row]) -> Iterator[str]:
    for value in record.values():
        if isinstance(value, str):
            yield value
        else:
            yield from value


def memguard(source: Path, target: Path, tell: Tell) -> int:
    """Normalise chunk by chunk; the output appears whole under its name. Return the rows."""
    from memguard import process_in_chunks  # noqa: PLC0415 - the naive way must not pay for what it does not use

    with open_rows(source) as rows, _written_aside(target) as file:
        writer = csv.writer(file, lineterminator="\n")
        header = normalise_header(next(rows, []))
        if header:
            writer.writerow(header)
        synced = 0

        def write(chunk: list[Row]) -> None:
            nonlocal synced
            writer.writerows(chunk)
            if file.tell() - synced >= _SYNC_BYTES:
                synced = _sync(file)

        report = process_in_chunks(
            rows,
            _normalise_rows,
            chunk_size=_CHUNK_ROWS,
            on_result=write,
            on_progress=lambda progress: tell(progress.done),
        )
    return report.items_done


def _normalise_rows(rows: list[Row]) -> list[Row]:
    return [[normalise(value) for value in row] for row in rows]


@contextlib.contextmanager
def _written_aside(target: Path) -> Iterator[TextIO]:
    """Open a file beside *target* that takes its name once it is complete, and is gone if it never is."""
    aside = target.with_name(f"{target.name}.part")
    try:
        with aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
            _sync(file)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _sync(file: TextIO) -> int:
    """Bring *file* to the disk; return its size in bytes."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _teller(total: int | None) -> Tell:
    """Return what tells of progress, now and then."""
    next_at = time.monotonic()

    def tell(done: int) -> None:
        nonlocal next_at
        now = time.monotonic()
        if now >= next_at:
            next_at = now + _TELL_SECONDS
            print(json.dumps({"done": done, "total": total}), flush=True)

    return tell


def _measurement() -> PeakMeasurement:
    try:
        return measure_peak(meter="kernel")
    except ValueError:
        # tracemalloc would double both the time and the memory of the job.
        return measure_peak(meter="sampled")


WAYS: dict[str, Callable[[Path, Path, Tell], int]] = {"naive": naive, "memguard": memguard}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the job one way; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m memguard.cli._demo_jobs")
    parser.add_argument("way", choices=sorted(WAYS))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--total", type=int, help="rows of the input, where they are known")
    options = parser.parse_args(arguments)
    start_bytes = status_bytes(os.getpid(), "VmRSS")
    try:
        with _measurement() as peak:
            rows = WAYS[options.way](options.source, options.target, _teller(options.total))
    except MemoryError:
        # Not a traceback: printing one allocates.
        os.write(2, b"MemoryError\n")
        return MEMORY_ERROR_STATUS
    except (OSError, csv.Error) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    last = {"rows": rows, "peak_bytes": peak.peak_bytes, "start_bytes": start_bytes, "seconds": peak.seconds}
    print(json.dumps(last), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
