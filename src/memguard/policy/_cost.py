"""
What a call costs in bytes, learned from calls that were measured while they ran alone.

Beside others nobody can tell whose memory is whose, so an overlap never measures; it can only contradict what is
believed. Costs are kept by function and by class of its arguments: within a factor of 1.4 of their size, and of the
largest number among them.
"""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from memguard.interrupts import is_interrupt
from memguard.units import ByteSize, parse_bytes

_FIRST_SOLOS, _LATER_SOLOS = 3, 2
"""Runs alone before a class may run beside others: a function's first class, and further ones."""
_KEPT_POINTS = 16
_SOLO_EVERY = (16, 32, 64)
"""Then alone again after so many calls of the class: what it costs may have changed."""
_BOUNDED_CALLS = 16
_TOLERANCE_BYTES = 4 * 1024**2
_MARGIN = 1.03
_LONGEST_PATH = 4096


def cost_bytes(cost: ByteSize | float) -> int:
    """
    Return what a piece of work costs in whole bytes: a size, or a number that somebody computed, rounded up.

    Raises:
        TypeError: *cost* is neither a number nor text.
        ValueError: It is negative, infinite or not a number, or a text that is no size.
    """
    if isinstance(cost, float):
        if not 0 <= cost < math.inf:
            raise ValueError(f"{cost!r} is not a cost; it is a number of bytes, 0 or more")
        return math.ceil(cost)
    return parse_bytes(cost)


class Features:
    """
    What the arguments of a call tell of its cost.

    Attributes:
        size: Of what they hold: bytes, items, or bytes in files.
        number: The largest number among them.
        key: Their class: half an octave of each.
    """

    __slots__ = ("key", "number", "size")

    def __init__(self, size: float = 0.0, number: float = 0.0) -> None:
        self.size = size
        self.number = number
        self.key = _half_octave(size), _half_octave(number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Features) and (self.size, self.number) == (other.size, other.number)

    def __hash__(self) -> int:
        return hash((self.size, self.number))

    def __repr__(self) -> str:
        return f"Features(size={self.size}, number={self.number})"


def features(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Features:
    """
    Return what the arguments of a call tell: numbers, text, bytes, containers, arrays, tables, files and their names.

    Any other object tells nothing and is not asked: the length of a database query is all of its rows.
    """
    size = number = 0.0
    for value in (*args, *kwargs.values()):
        kind = type(value)  # what it says of its class is not asked
        if issubclass(kind, (int, float)):
            number = max(number, _finite(value, int if issubclass(kind, int) else float))
        else:
            size += _size(value, kind)
    return Features(size, number)


def _finite(value: Any, base: type[int | float]) -> float:
    """Return the absolute *value*, a *base*, as a number that can be reckoned with; 0 where it is none."""
    try:
        number = abs(base.__float__(value))
    except OverflowError:
        return 0.0
    return number if number < math.inf else 0.0


def _size(value: Any, kind: type) -> float:
    for base in _CONTAINERS:
        if issubclass(kind, base):
            if base is str and _may_be_path(value):
                return _file_size(value) or len(value)
            return float(base.__len__(value))
    try:
        return _told_size(value, kind)
    except Exception as error:
        if is_interrupt(error):
            raise
        return 0.0  # an odd object costs its own measurement, not the call


_CONTAINERS: tuple[Any, ...] = (str, bytes, bytearray, list, tuple, dict, set, frozenset, deque, range)
_FILES = (io.FileIO, io.BufferedReader, io.BufferedRandom, io.TextIOWrapper)


def _told_size(value: Any, kind: type) -> float:
    """Return the size of *value* as its type declares one; whatever the object makes up at run time is not asked."""
    if hasattr(kind, "nbytes"):  # arrays of any make, memoryview
        return _finite(int(value.nbytes), int)
    if hasattr(kind, "shape"):  # tables of any make
        return _finite(math.prod(side for side in value.shape if type(side) is int), int)
    if issubclass(kind, io.BytesIO):
        return float(io.BytesIO.getbuffer(value).nbytes)
    if issubclass(kind, _FILES):
        return float(os.fstat(value.fileno()).st_size)
    return _file_size(value) if issubclass(kind, os.PathLike) else 0.0


def _file_size(path: str | os.PathLike[str]) -> float:
    try:
        return float(Path(path).stat().st_size)
    except (OSError, ValueError):
        return 0.0


def _may_be_path(text: str) -> bool:
    return os.sep in text and len(text) < _LONGEST_PATH


def _half_octave(value: float) -> int:
    if value < 1:
        return 0
    mantissa, exponent = math.frexp(value)
    return 2 * exponent + (mantissa >= math.sqrt(0.5))


class Point(NamedTuple):
    """A measurement: what a call with these arguments took."""

    nbytes: int
    features: Features

    def scaled(self, asked: Features) -> int:
        """Return what it tells of a call with larger arguments of the same class: more with their size, never less."""
        if asked.size <= self.features.size and asked.number <= self.features.number:
            return self.nbytes
        growth = max(1.0, _ratio(asked.size, self.features.size), _ratio(asked.number, self.features.number))
        return math.ceil(self.nbytes * growth)


def _ratio(asked: float, measured: float) -> float:
    return asked / measured if measured > 0 else 1.0


@dataclass(frozen=True, slots=True)
class CostClass:
    """
    What is known of one function with arguments of one class.

    Attributes:
        points: The last measurements.
        solos: Calls that were measured alone.
        since: Calls since the last of these.
    """

    points: tuple[Point, ...] = ()
    solos: int = 0
    since: int = 0

    def estimate(self, asked: Features, spare_bytes: int) -> int | None:
        """
        Return what a call costs; None where nothing is known.

        The largest measurement, or the second largest where the largest stands out by no more than half of
        *spare_bytes*, the room above the threshold, which takes one such call.
        """
        if not self.points:
            return None
        sizes = sorted([point.scaled(asked) for point in self.points])
        if len(sizes) >= 4 and sizes[-1] - sizes[-2] <= spare_bytes // 2:
            return sizes[-2]
        return sizes[-1]

    def with_point(self, point: Point) -> CostClass:
        """Return it with one measurement more."""
        return replace(self, points=(*self.points, point)[-_KEPT_POINTS:])


@dataclass(frozen=True, slots=True)
class FunctionCost:
    """
    What is known of one function.

    Attributes:
        classes: By the class of the arguments.
        clean: Calls since an overrun: the more, the more may run at once.
    """

    classes: Mapping[tuple[int, int], CostClass] = field(default_factory=dict)
    clean: int = 0

    @property
    def most_at_once(self) -> int:
        """
        How many calls may run at once.

        The square root of those that went well: one that comes with probability p is then met by chance before many
        run at once; in (1 - p) ** (n * n) of the cases it is not.
        """
        return max(1, math.isqrt(self.clean))

    def of(self, asked: Features) -> CostClass:
        """Return what is known of the class of *asked*."""
        return self.classes.get(asked.key, CostClass())

    def estimate(self, asked: Features, spare_bytes: int) -> int | None:
        """Return what a call costs: by its class, else by the smallest one that is larger in all; None if unknown."""
        known = self.of(asked).estimate(asked, spare_bytes)
        if known is not None:
            return known
        bounds = [
            estimate
            for (size, number), each in self.classes.items()
            if size >= asked.key[0] and number >= asked.key[1]
            if (estimate := each.estimate(asked, spare_bytes)) is not None
        ]
        return min(bounds, default=None)

    def is_known(self, asked: Features) -> bool:
        """Tell whether enough calls of its class were measured for them to run beside others."""
        return bool(self.of(asked).points) and self.of(asked).solos >= self._wanted_solos(asked)

    def _wanted_solos(self, asked: Features) -> int:
        return _LATER_SOLOS if any(key != asked.key for key in self.classes) else _FIRST_SOLOS

    def is_due(self, asked: Features, estimate: int | None) -> bool:
        """Tell whether the next call with such arguments, which costs *estimate*, shall run alone to be measured."""
        known = self.of(asked)
        wanted = self._wanted_solos(asked)
        if not known.points:
            return estimate is None or known.since >= _BOUNDED_CALLS
        if known.solos < wanted:
            return True
        return known.since >= _SOLO_EVERY[min(known.solos - wanted, len(_SOLO_EVERY) - 1)]

    def may_be_measured(self, asked: Features) -> bool:
        """Tell whether a call that happens to be alone is worth measuring."""
        return self.of(asked).solos < _KEPT_POINTS

    def booked_bytes(self, asked: Features, estimate: int | None, idle_room_bytes: int) -> int:
        """
        Return what a call books whose cost is *estimate*.

        Never cut to the room of the moment: only to *idle_room_bytes*, what there is when nobody runs, so that a large
        call is tried alone rather than refused for ever. Nothing known, it is just over half of that: one at a time,
        and others still find some.
        """
        if estimate is None:
            return idle_room_bytes // 2 + 1
        solos = max(1, self.of(asked).solos)
        return max(1, min(math.ceil(estimate * (_MARGIN + 1 / solos**2)), idle_room_bytes))

    def ended(self, asked: Features) -> FunctionCost:
        """Return what is known after a call that was not measured."""
        known = self.of(asked)
        return self._with(asked, CostClass(known.points, known.solos, known.since + 1), self.clean + 1)

    def measured(self, asked: Features, low_bytes: int, hidden_bytes: int, spare_bytes: int) -> FunctionCost:
        """
        Return what is known after a call that ran alone.

        Args:
            asked: Its arguments.
            low_bytes: What the process grew by: it needed that much at least.
            hidden_bytes: What Python's own allocator had in hand when it began, and may have used without a trace.
            spare_bytes: The room above the threshold.
        """
        known = replace(self.of(asked), since=0)
        estimate = known.estimate(asked, spare_bytes)
        # A measurement that much could hide in tells nothing by being low; repeated, it would only push others out.
        telling = estimate is None or low_bytes >= estimate or hidden_bytes < low_bytes // 16
        if telling or (estimate is not None and low_bytes + hidden_bytes < estimate):
            known = known.with_point(Point(low_bytes, asked))
        return self._with(asked, replace(known, solos=known.solos + 1), self.clean + 1)

    def contradicted(self, asked: Features, more_bytes: int, spare_bytes: int) -> FunctionCost:
        """Return what is known after calls took *more_bytes* more than was believed, this one perhaps among them."""
        known = self.of(asked)
        estimate = self.estimate(asked, spare_bytes) or 0
        return self._with(asked, known.with_point(Point(estimate + more_bytes, asked)), self.clean // 4)

    def _with(self, asked: Features, known: CostClass, clean: int) -> FunctionCost:
        return FunctionCost({**self.classes, asked.key: known}, clean)


def tolerance_bytes(total_bytes: int) -> int:
    """Return by how much calls may exceed *total_bytes*, what is believed of them, without being doubted."""
    return max(_TOLERANCE_BYTES, total_bytes // 8)


def is_overrun(booked_bytes: int, peak_bytes: int) -> bool:
    """Tell whether a call that booked *booked_bytes* took clearly more: half as much again, and 4 MiB."""
    return peak_bytes > booked_bytes * 3 // 2 + _TOLERANCE_BYTES
