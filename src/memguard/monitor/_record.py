"""
Samples in a file, one JSON object a line: what was seen on a bad day can be judged again on another machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from memguard.values import MemoryUsage

_FIELDS = {field.name for field in fields(MemoryUsage)}


def write_samples(samples: Iterable[MemoryUsage], path: str | os.PathLike[str]) -> int:
    """
    Write *samples* as JSON Lines; return how many. The file appears whole under its name or not at all.

    What was not measured is left out of a line.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    target = Path(path)
    count = 0
    number, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            for sample in samples:
                known = {name: value for name, value in asdict(sample).items() if value is not None}
                file.write(json.dumps(known) + "\n")
                count += 1
        Path(aside).replace(target)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return count


def read_samples(path: str | os.PathLike[str]) -> tuple[MemoryUsage, ...]:
    """
    Return the samples that :func:`write_samples` wrote, ready for :func:`memguard.detect_leak`.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is not a sample; the text names it.
    """
    with Path(path).open(encoding="utf-8") as file:
        return tuple(_sample(line, f"{os.fspath(path)}, line {at}") for at, line in enumerate(file, 1) if line.strip())


def _sample(line: str, where: str) -> MemoryUsage:
    try:
        found: dict[str, Any] = json.loads(line)
        return MemoryUsage(**{name: value for name, value in found.items() if name in _FIELDS})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a sample ({error})") from None
