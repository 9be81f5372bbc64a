"""
Arguments of this package, refused at the door with a sentence that repeats them.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from memguard.units import ByteSize, parse_bytes


def check_count(value: Any, name: str, *, least: int = 1) -> int:
    """
    Return *value* as an int of at least *least*; integers of any type will do.

    Raises:
        TypeError: It is no whole number; a bool, NaN and infinity are none.
        ValueError: It is smaller.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, got {value!r}")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a whole number, got {value!r}") from None
    if count < least:
        raise ValueError(f"{name} is {least} or more, got {count}")
    return count


def check_budget(max_bytes: ByteSize | None) -> int | None:
    """Return *max_bytes* as bytes of at least 1, or None."""
    if max_bytes is None:
        return None
    budget = parse_bytes(max_bytes)
    if budget < 1:
        raise ValueError(f"max_bytes is 1 or more, got {max_bytes!r}")
    return budget


def check_seconds(value: Any, name: str, *, or_zero: bool = False) -> float:
    """
    Return *value* if it is a finite number of seconds above 0, or 0 itself with *or_zero*.

    Raises:
        TypeError: It is no number; a bool is none.
        ValueError: It is too small, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, got {value!r}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not or_zero):
        least = "0 or more" if or_zero else "above 0"
        raise ValueError(f"{name} is a number of seconds, {least} and finite; got {value!r}")
    return seconds
