"""
What a breaker is told, checked at the door.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from memguard.policy import Lines
from memguard.sampling import Sampler
from memguard.units import ByteSize, Threshold, parse_bytes

BreakerMode: TypeAlias = Literal["enforce", "observe", "off"]
"""Refuse; only count what would have been refused; do neither."""


@dataclass(frozen=True, slots=True)
class Config:
    """Checked settings of one breaker."""

    lines: Lines
    limit_bytes: int | None
    check_interval: float
    relief: bool
    mode: BreakerMode
    sampler: Sampler | None


def make_config(
    *,
    open_at: Threshold,
    close_at: Threshold | None,
    warn_at: Threshold | None,
    limit: ByteSize | None,
    check_interval: float,
    relief: bool,
    mode: BreakerMode,
    sampler: Sampler | None,
) -> Config:
    """
    Check what a breaker is told.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument cannot be meant; the text repeats it.
    """
    if isinstance(check_interval, bool) or not isinstance(check_interval, (int, float)):
        raise TypeError(f"check_interval is a number of seconds, got {check_interval!r}")
    if not 0 < check_interval <= sys.float_info.max:
        raise ValueError(f"check_interval is a number of seconds above 0, got {check_interval!r}")
    if mode not in get_args(BreakerMode):
        raise ValueError(f"mode is 'enforce', 'observe' or 'off', got {mode!r}")
    if not isinstance(relief, bool):
        raise TypeError(f"relief is True or False, got {relief!r}")
    if sampler is not None and not callable(sampler):
        raise TypeError(f"sampler is a callable that returns a MemoryUsage, got {sampler!r}")
    limit_bytes = None if limit is None else parse_bytes(limit)
    if limit_bytes == 0:
        raise ValueError("limit=0 leaves no room at all; pass None for no limit of your own")
    lines = Lines.of(open_at, close_at, warn_at)
    return Config(lines, limit_bytes, float(check_interval), relief, mode, sampler)


def check_clock(clock: Callable[[], float]) -> Callable[[], float]:
    """Return *clock* if it can be called."""
    if not callable(clock):
        raise TypeError(f"clock is a callable that returns seconds, got {clock!r}")
    return clock
