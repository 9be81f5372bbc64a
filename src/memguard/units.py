"""
Sizes and lines as people write them, and back.

Nothing is guessed: a text that two tools read differently is refused, with the sentence that says so.
"""

from __future__ import annotations

import operator
import re
from decimal import Decimal
from typing import Any, TypeAlias

ByteSize: TypeAlias = int | str
"""Bytes as an int, or text such as ``"512 MiB"``, ``"1.5GB"``."""

Threshold: TypeAlias = float | int | str
"""A fraction up to 1.0, ``"80%"``, or a size: an int of bytes or ``"512 MiB"``."""

_NUMBER = r"([0-9]{1,19}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})"
_SIZE = re.compile(rf"\s*{_NUMBER}\s*([A-Za-z]*)\s*", re.ASCII)
_PERCENT = re.compile(rf"\s*{_NUMBER}\s*%\s*", re.ASCII)
_FRACTION = re.compile(r"\s*(0?\.[0-9]{1,9}|[01]\.[0-9]{1,9})\s*", re.ASCII)

_FACTORS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _FACTORS[f"{_letter}b"] = _FACTORS[_letter] = 1000**_power
    _FACTORS[f"{_letter}ib"] = _FACTORS[f"{_letter}i"] = 1024**_power

# "512m" is 512 MiB to Docker and half a byte to Kubernetes; "1g" is 1 GiB to Docker and nothing to Kubernetes.
_TWO_MEANINGS = frozenset("mgtpe")


def parse_bytes(text: ByteSize) -> int:
    """
    Return the bytes that *text* means.

    Args:
        text: An int of bytes (any integer type, NumPy's included), or a number and a unit: ``k``, ``M``, ``G``,
            ``T`` and ``kB``, ``MB``, ... are decimal, ``Ki``, ``Mi``, ... and ``KiB``, ``MiB``, ... are binary.

    Raises:
        TypeError: *text* is neither an integer nor text; a bool is neither.
        ValueError: It is negative, has an unknown unit, or one that two tools read differently.
    """
    if not isinstance(text, str):
        return _whole_bytes(text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write bytes as an int, or text such as '512 MiB' or '1.5GB'")
    number, unit = match.groups()
    if unit in _TWO_MEANINGS:
        big = unit.upper()
        raise ValueError(
            f"{text!r} has two meanings: binary to Docker, something else to Kubernetes; "
            f"write '{number} {big}iB' or '{number} {big}B'"
        )
    factor = _FACTORS.get(unit.lower())
    if factor is None:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; use B, kB, MB, GB or KiB, MiB, GiB")
    size = Decimal(number) * factor
    if factor == 1 and size != int(size):
        raise ValueError(f"{text!r} is a part of a byte; sizes are whole bytes")
    return int(size)


def _whole_bytes(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is not a size; write bytes as an int, or text such as '512 MiB'")
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{value!r} is not a size; write bytes as an int, or text such as '512 MiB'") from None
    if size < 0:
        raise ValueError(f"{size} is negative; a size is 0 bytes or more")
    return int.__pos__(size)  # a plain int, whatever subclass of it came in


_LARGEST_WRITTEN_OUT = 1024**8


def format_bytes(n: int) -> str:
    """Return *n* bytes for people: ``"1.5 GiB"``, ``"512 MiB"``, ``"-3 KiB"``, ``"17 B"``."""
    size = abs(n)
    sign = "-" if n < 0 else ""
    if size >= _LARGEST_WRITTEN_OUT:
        return f"{sign}{Decimal(size) / 1024**6:.1e} EiB"
    if size < 1024:
        return f"{sign}{size} B"
    value = size / 1024
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        # 1023.95 and more would be rounded to "1024.0".
        if value < 1023.95:
            return f"{sign}{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{sign}{value:.1f}".removesuffix(".0") + " EiB"


def parse_threshold(value: Threshold) -> float | int:
    """
    Return a line as a float (fraction of the limit, 0 to 1) or an int (bytes).

    Raises:
        TypeError: Neither a number nor text.
        ValueError: Outside (0, 1], 0 bytes, or an int from 1 to 100, which is nearly always a percentage
            that lost its sign.
    """
    if isinstance(value, str):
        return _threshold_of_text(value)
    if isinstance(value, float):
        return _fraction(value, repr(value))
    return _line_bytes(parse_bytes(value), repr(value))


def _threshold_of_text(text: str) -> float | int:
    if match := _PERCENT.fullmatch(text):
        return _fraction(float(match[1]) / 100, repr(text))
    if match := _FRACTION.fullmatch(text):
        return _fraction(float(match[1]), repr(text))
    return _line_bytes(parse_bytes(text), repr(text))


def _fraction(fraction: float, shown: str) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"{shown} is not a line: a fraction lies above 0 and up to 1.0 ('100%')")
    return fraction


def _line_bytes(size: int, shown: str) -> int:
    if size == 0:
        raise ValueError(f"{shown} is not a line: it would refuse everything")
    if size <= 100:
        raise ValueError(f"{shown} is {size} bytes; write '{size}%' for a percentage")
    return size
