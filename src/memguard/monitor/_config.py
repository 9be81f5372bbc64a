"""
What a monitor is told, checked at the door.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memguard.policy import WatchLines
from memguard.sampling import Sampler
from memguard.settings import settings
from memguard.units import ByteSize, Threshold, parse_bytes
from memguard.values import Gate

DEFAULT_SAMPLE_INTERVAL = 60.0


@dataclass(frozen=True, slots=True)
class Config:
    """Checked settings of one monitor. Without *lines* the breaker's level counts."""

    breaker: Gate | None
    sample_interval: float
    max_samples: int
    growth_threshold: float
    alerts: bool
    lines: WatchLines | None
    max_growth_bytes: int
    log_interval: float | None
    sampler: Sampler | None
    clock: Callable[[], float]


def make_config(
    *,
    breaker: Gate | None,
    sample_interval: float | None,
    max_samples: int,
    growth_threshold: float,
    alerts: bool,
    warn_at: Threshold | None,
    critical_at: Threshold | None,
    max_growth_per_minute: ByteSize,
    log_interval: float | None,
    sampler: Sampler | None,
    clock: Callable[[], float],
) -> Config:
    """
    Check what a monitor is told.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument cannot be meant; the text repeats it.
    """
    if not isinstance(alerts, bool):
        raise TypeError(f"alerts is True or False, got {alerts!r}")
    told = warn_at is not None or critical_at is not None or sampler is not None
    return Config(
        breaker=breaker,
        sample_interval=_seconds(_interval(sample_interval), "sample_interval"),
        max_samples=_whole(max_samples, "max_samples"),
        growth_threshold=_factor(growth_threshold),
        alerts=alerts,
        lines=WatchLines.of(warn_at, critical_at) if told else None,
        max_growth_bytes=parse_bytes(max_growth_per_minute),
        log_interval=None if log_interval is None else _seconds(log_interval, "log_interval"),
        sampler=None if sampler is None else check_callable(sampler, "sampler"),
        clock=check_callable(clock, "clock"),
    )


def check_callable(value: Any, name: str) -> Any:
    """Return *value* if it can be called."""
    if not callable(value):
        raise TypeError(f"{name} is a callable, got {value!r}")
    return value


def _interval(given: float | None) -> float:
    if given is not None:
        return given
    asked = settings().sample_interval
    return DEFAULT_SAMPLE_INTERVAL if asked is None else asked


def _seconds(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, got {value!r}")
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} is a number of seconds above 0, got {value!r}")
    return float(value)


def _whole(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, got {value!r}")
    if value < 2:
        raise ValueError(f"{name} is 2 or more, got {value!r}")
    return value


def _factor(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"growth_threshold is a number, got {value!r}")
    if not 1 < value <= sys.float_info.max:
        raise ValueError(f"growth_threshold is a factor above 1 (1.5: half as much again), got {value!r}")
    return float(value)
