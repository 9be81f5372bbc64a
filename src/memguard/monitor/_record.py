"""
Samples in a file, one JSON object a line: what was seen on a bad day can be judged again on another machine.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from memguard.values import MemoryUsage

_FIELDS = {field.name for field in fields(MemoryUsage)}
_OPTIONAL = {field.name for field in fields(MemoryUsage) if field.default is not MISSING}


def write_samples(samples: Iterable[MemoryUsage], path: str | os.PathLike[str]) -> int:
    """
    Write *samples* as JSON Lines; return how many. The file appears whole under its name or not at all.

    What was not measured is left out of a line. Who may read it is as for any new file, or as it was.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    target = Path(path)
    count = 0
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    # Not by tempfile, which lets nobody else read: the umask decides, as for any file.
    number = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            for sample in samples:
                known = {name: value for name, value in asdict(sample).items() if value is not None}
                file.write(json.dumps(known) + "\n")
                count += 1
        if target.exists():
            aside.chmod(target.stat().st_mode & 0o777)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return count


def read_samples(path: str | os.PathLike[str]) -> tuple[MemoryUsage, ...]:
    """
    Return the samples that :func:`write_samples` wrote, ready for :func:`memguard.detect_leak`.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is not a sample; the text names it.
    """
    # As bytes: text would be decoded in blocks, and a fault in it could not be told to stand in a line.
    with Path(path).open("rb") as file:
        return tuple(_sample(line, f"{os.fspath(path)}, line {at}") for at, line in enumerate(file, 1) if line.strip())


def _sample(line: bytes, where: str) -> MemoryUsage:
    try:
        found: dict[str, Any] = json.loads(line)
        return MemoryUsage(**{name: _checked(name, value) for name, value in found.items() if name in _FIELDS})
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a sample ({error})") from None


def _checked(name: str, value: Any) -> Any:
    """Return *value* if the field *name* of a sample can hold it."""
    if name == "source":
        right = isinstance(value, str)
    elif name == "at":
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    else:
        right = (isinstance(value, int) and not isinstance(value, bool) and value >= 0) or (
            value is None and name in _OPTIONAL
        )
    if not right:
        raise ValueError(f"{name} cannot be {value!r}")
    return value
