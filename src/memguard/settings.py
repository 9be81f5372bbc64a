"""
``MEMGUARD_*``: defaults that the environment sets. Read once, in one place.

An empty variable is one that is not set. A wrong one is an error that names variable and value.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from memguard.units import Threshold, parse_bytes, parse_threshold

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What the environment asks for; None where it says nothing.

    Attributes:
        limit_bytes: ``MEMGUARD_LIMIT``: a limit of one's own, beside those of the kernel.
        open_at: ``MEMGUARD_OPEN_AT``: the line at which the breaker opens.
        mode: ``MEMGUARD_MODE``: ``enforce``, ``observe`` or ``off``.
        check_interval: ``MEMGUARD_CHECK_INTERVAL``: seconds between two readings at most.
        chunk_size: ``MEMGUARD_CHUNK_SIZE``: items to a chunk.
        batch_size: ``MEMGUARD_BATCH_SIZE``: rows to a batch.
        force_gc: ``MEMGUARD_FORCE_GC``: whether relief may run a garbage collection.
        arenas: ``MEMGUARD_ARENAS``: ``keep`` leaves the allocator's arenas alone.
        monitor: ``MEMGUARD_MONITOR``: ``off`` keeps monitors from starting.
        sample_interval: ``MEMGUARD_SAMPLE_INTERVAL``: seconds between two samples of a monitor.
    """

    limit_bytes: int | None = None
    open_at: Threshold | None = None
    mode: str | None = None
    check_interval: float | None = None
    chunk_size: int | None = None
    batch_size: int | None = None
    force_gc: bool | None = None
    arenas: str | None = None
    monitor: bool | None = None
    sample_interval: float | None = None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """
    Return what *environ* asks for.

    Raises:
        ValueError: A variable holds something that cannot be meant; the text names it.
    """

    def read(name: str, parse: Callable[[str], _T]) -> _T | None:
        text = environ.get(name, "").strip()
        if not text:
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"environment variable {name}={text!r}: {error}") from None

    return Settings(
        limit_bytes=read("MEMGUARD_LIMIT", _limit),
        open_at=read("MEMGUARD_OPEN_AT", parse_threshold),
        mode=read("MEMGUARD_MODE", _one_of("enforce", "observe", "off")),
        check_interval=read("MEMGUARD_CHECK_INTERVAL", _seconds),
        chunk_size=read("MEMGUARD_CHUNK_SIZE", _count),
        batch_size=read("MEMGUARD_BATCH_SIZE", _count),
        force_gc=read("MEMGUARD_FORCE_GC", _switch),
        arenas=read("MEMGUARD_ARENAS", _one_of("keep")),
        monitor=read("MEMGUARD_MONITOR", _switch),
        sample_interval=read("MEMGUARD_SAMPLE_INTERVAL", _seconds),
    )


@functools.cache
def settings() -> Settings:
    """Return the settings of this process, read at the first call."""
    return read_settings(os.environ)


def _limit(text: str) -> int:
    size = parse_bytes(text)
    if size == 0:
        raise ValueError("a limit of 0 bytes leaves no room at all; leave it empty for none")
    return size


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return parse


def _switch(text: str) -> bool:
    return _one_of("on", "off")(text) == "on"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError("must be a number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("must be a whole number above 0")
    return int(text)
