"""
What a cache is told, checked at the door.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from memguard.caching._order import Policy
from memguard.units import ByteSize, parse_bytes

_T = TypeVar("_T")
UNBOUNDED = sys.maxsize
"""No limit: an int, since to compare with infinity costs more."""


def entries_of(max_entries: int | None) -> int:
    """Return a checked bound on entries."""
    if max_entries is None:
        return UNBOUNDED
    if isinstance(max_entries, bool):
        raise TypeError(f"max_entries is a whole number, got {max_entries!r}")
    try:
        count = operator.index(max_entries)
    except TypeError:
        raise TypeError(f"max_entries is a whole number, got {max_entries!r}; bytes go into max_bytes") from None
    if count < 1:
        raise ValueError(f"max_entries is 1 or more, got {max_entries!r}")
    return count


def bytes_of(size: ByteSize | None, name: str) -> int:
    """Return a checked bound on bytes."""
    if size is None:
        return UNBOUNDED
    nbytes = parse_bytes(size)
    if nbytes < 1:
        raise ValueError(f"{name} is 1 byte or more, got {size!r}")
    return nbytes


def seconds_of(ttl: float | None) -> float | None:
    """Return a checked time to live."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"ttl is a number of seconds, got {ttl!r}")
    if math.isnan(ttl) or ttl <= 0:
        raise ValueError(f"ttl is a number of seconds above 0, got {ttl!r}")
    return float(ttl)


def policy_of(policy: Policy) -> Policy:
    """Return a checked policy."""
    if policy not in ("lru", "sieve"):
        raise ValueError(f"policy is 'lru' or 'sieve', got {policy!r}")
    return policy


def told(value: _T | None, none: _T) -> _T | None:
    """Return *value*, or None where it is *none*: what stands for no bound."""
    return None if value == none else value


def callable_of(value: Callable[..., Any] | None, name: str) -> Callable[..., Any] | None:
    """Return *value* if it can be called, or is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} is a callable, got {value!r}")
    return value


def weight_of(size: object, value: object) -> int:
    """
    Return *size* if it can be the weight of *value*.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is negative.
    """
    if type(size) is not int:
        if isinstance(size, bool):
            raise TypeError(f"sizeof must return whole bytes, got {size!r} for a {type(value).__name__}")
        try:
            size = operator.index(size)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"sizeof must return whole bytes, got {size!r} for a {type(value).__name__}") from None
    if size < 0:
        raise ValueError(f"sizeof must not return a negative size, got {size!r} for a {type(value).__name__}")
    return size
