"""
Checks the output of the demo against a second computation, row by row, in constant memory.

The rules are written a second time on purpose: a mistake in the job's own normalisation must not pass unseen.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

from memguard.cli._demo_jobs import Row, open_rows

_BLANKS = re.compile(r"\s+")
_NOTHING = re.compile(r"-|#?n/a|na|nan|null|none", re.IGNORECASE | re.ASCII)
_TELL_EVERY = 5000


class WrongOutputError(Exception):
    """The output is not what the input asks for; the text says where they part."""


def check_output(source: Path, target: Path, tell: Callable[[int], None] = lambda _rows: None) -> int:
    """
    Return how many rows of *target* are what *source* normalises to: all of them.

    Args:
        source: The CSV that the job read.
        target: The CSV that it wrote.
        tell: Called with the rows checked so far, every few thousand.

    Raises:
        WrongOutputError: They differ.
        csv.Error: One of them is not CSV.
    """
    with open_rows(source) as theirs, target.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        _check_header(next(theirs, []), _fields(file.readline()))
        rows = 0
        for row, line in itertools.zip_longest(theirs, file):
            if row is None or line is None:
                raise WrongOutputError(
                    f"the output has {'more' if row is None else 'fewer'} than the {rows} rows of it"
                )
            wanted, found = [_plain(value) for value in row], _fields(line)
            if wanted != found:
                raise WrongOutputError(f"row {rows + 1} should be {wanted}, and is {found}")
            rows += 1
            if rows % _TELL_EVERY == 0:
                tell(rows)
    return rows


def _check_header(names: Row, found: Row) -> None:
    """Columns keep their order and number, and have names of their own."""
    if len(names) != len(found) or len(set(found)) != len(found):
        raise WrongOutputError(f"the columns {names} became {found}")


def _plain(value: str) -> str:
    text = _BLANKS.sub(" ", value).strip(" ")
    return "" if _NOTHING.fullmatch(text) else text


def _fields(line: str) -> Row:
    """Return the fields of one line of output, in which no field holds a line break."""
    line = line.removesuffix("\n")
    if '"' not in line:
        return line.split(",") if line else []
    # Outside quotes a comma separates; a quote inside quotes is doubled.
    fields, rest = [], line + ","
    while rest:
        match = _FIELD.match(rest)
        if match is None:
            raise WrongOutputError(f"this is not a line of CSV: {line!r}")
        quoted, bare = match.groups()
        fields.append(bare if quoted is None else quoted.replace('""', '"'))
        rest = rest[match.end() :]
    return fields


_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^",]*)),')
