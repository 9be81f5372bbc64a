"""
What a value costs in bytes: an estimate that is honest, in bounded time.

A value is looked through level by level: itself, what it holds, what that holds. Long containers and broad levels are
sampled. Of a sample the first half counts as it is, the second for all the rest, by what it adds: so what all share is
counted once. NumPy arrays say themselves what they hold; neither NumPy nor pandas is ever imported for it.
"""

from __future__ import annotations

import enum
import gc
import io
import logging
import math
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, KeysView, Sequence, ValuesView
from itertools import islice
from typing import Any, TypeAlias

from memguard.newest import newest

MAX_OBJECTS = 5000
_ALLOCATION = 16
"""Allocators round up to this, Python's own and glibc's."""
_SAMPLE = 128
"""So many elements stand for those of one long container."""
_LEAST_SAMPLE = 4
"""And where there are many containers, fewer of each."""
_REACH = 32_768
"""Of a dict, a set or a deque so many are gone through from either end; half a million would be milliseconds."""
_TRIES = 5
_GOLDEN = (math.sqrt(5) - 1) / 2

_FREE = frozenset((type(None), bool, type(Ellipsis), type(NotImplemented)))
_ATOMS = frozenset((str, int, float, bytes))
_SMALL_INTEGERS = range(-5, 257)
_ONE_DIGIT = 1 << 30
_NOT_OWNED = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
    property,
    enum.Enum,
    logging.Logger,
)
"""What a value refers to without holding it: it is there anyway."""
_SETS = (set, frozenset)
_CONTAINERS = (list, tuple, deque, *_SETS)
_BUFFERS = (bytes, bytearray, memoryview)
_ELSEWHERE = frozenset(("pyarrow", "polars", "torch", "cupy", "jax", "xarray"))
"""Who holds memory that Python does not see, and tells how much."""
_MANAGED_DICT = 1 << 4
_INLINE_BYTES = 16

Parts: TypeAlias = tuple[int, Sequence[Collection[Any]]]
"""The bytes of a value itself, and groups of what it holds."""


def deep_sizeof(value: object, *, max_objects: int = MAX_OBJECTS) -> int:
    """
    Return about how many bytes *value* takes, with all that it holds.

    Within a tenth for most shapes; a container whose elements differ wildly may be a fifth off. Microseconds for a
    record, half a millisecond for a thousand of them, a few milliseconds at most, whatever the length of containers.
    Strings that a dict has as keys and others hold, too, are not counted: all records of a kind share their names.

    Args:
        value: Anything.
        max_objects: Look at so many objects at most; those of a level that are not looked at count like the others.
            What is nested deeper than that is not counted.

    Raises:
        ValueError: *max_objects* is below 1.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bytes or kind is float:  # most keys, and many values
        return (sys.getsizeof(value) + _ALLOCATION - 1) & -_ALLOCATION
    if max_objects < 1:
        raise ValueError(f"max_objects is 1 or more, got {max_objects!r}")
    return round(_walk(value, max_objects))


def _walk(root: object, left: int) -> float:
    """Return the bytes of *root* and what it holds; look at about *left* objects at most."""
    walk = _Walk()
    total = walk.add([root], 1.0)
    while walk.below and left > 0:
        level, weights = walk.below, walk.weights
        walk.below, walk.weights = [], []
        # Part of what is left for the containers of a level, half for what they hold: the last shall not starve.
        most = max(left // 16, min(left, 16))
        if len(level) > most:
            level, weights = _thinned(level, weights, most)
        left -= len(level)
        groups: list[tuple[Collection[Any], float]] = []
        for value, weight in zip(level, weights, strict=True):
            if id(value) not in walk.seen:
                walk.seen.add(id(value))
                own, held = _parts(value, type(value))
                total += weight * own
                groups += [(group, weight) for group in held if group]
        sample = _sample_of([len(group) for group, _ in groups], left // 2)
        for number, (group, weight) in enumerate(groups):
            count = len(group)
            if count <= sample:
                total += walk.add(_snapshot(group), weight)
                left -= count
            else:
                half = sample // 2
                chosen = _spread(group, sample, hash((number, count)))  # other fields of each record
                total += walk.add(chosen[:half], weight)
                total += walk.add(chosen[half:], weight * (count - half) / half)
                left -= sample
    return total


def _sample_of(counts: Sequence[int], room: int) -> int:
    """Return how many elements of each group to look at, at most, so that there is room for all."""
    sample = _SAMPLE
    while sample > _LEAST_SAMPLE and sum(min(count, sample) for count in counts) > room:
        sample //= 2
    return sample


class _Walk:
    """
    One walk over what a value holds.

    Attributes:
        seen: The identities of what was counted.
        below: What is to be looked into next.
        weights: How many objects each of these stands for.
    """

    __slots__ = ("below", "seen", "weights")

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.below: list[Any] = []
        self.weights: list[float] = []

    def add(self, elements: Iterable[Any], weight: float) -> float:
        """Return the bytes of those that hold nothing, each counted *weight* times; keep the others for later."""
        seen, total = self.seen, 0
        for value in elements:
            kind = type(value)
            if kind in _FREE:
                continue
            if kind not in _ATOMS:
                self.below.append(value)
                self.weights.append(weight)
            elif id(value) not in seen:
                seen.add(id(value))
                if kind is float:
                    total += 32
                elif kind is not int:
                    total += (value.__sizeof__() + 15) & -16
                elif value not in _SMALL_INTEGERS:
                    total += 32 if -_ONE_DIGIT < value < _ONE_DIGIT else _rounded(sys.getsizeof(value))
        return total * weight


def _thinned(level: list[Any], weights: list[float], most: int) -> tuple[list[Any], list[float]]:
    """Return *most* of a level and how many objects each stands for now."""
    chosen = _positions(len(level), most, 0)
    half = most // 2
    times = (len(level) - half) / (most - half)
    kept = [weights[at] for at in chosen[:half]] + [weights[at] * times for at in chosen[half:]]
    return [level[at] for at in chosen], kept


def _spread(group: Collection[Any], sample: int, offset: int) -> list[Any]:
    """Return *sample* elements from all over *group*."""
    count = len(group)
    if type(group) is list or type(group) is tuple:
        return [group[at] for at in _positions(count, sample, offset)]
    if count <= _SAMPLE * sample:
        found = _snapshot(group)
        return _spread(found, sample, offset) if len(found) >= sample else found
    both: Any = group if isinstance(group, (KeysView, ValuesView, deque)) else None
    reach, each = min(count, _REACH), sample if both is None else sample // 2
    step = reach // sample - 1 | 1  # odd: of what takes turns, each shall have some
    chosen = _snapshot(group, step * each, step)
    if both is not None:
        chosen += _from_the_end(both, step * each, step)
    return chosen[::2] + chosen[1::2]


def _snapshot(group: Iterable[Any], stop: int | None = None, step: int = 1) -> list[Any]:
    """Return elements of *group*, which other threads may change; none if they never cease to."""
    for _ in range(_TRIES):
        try:
            return list(islice(group, 0, stop, step))
        except RuntimeError:  # it changed meanwhile
            continue
    return []


def _from_the_end(group: Any, stop: int, step: int) -> list[Any]:
    """Return elements of *group*, likewise, the last first."""
    for _ in range(_TRIES):
        try:
            return newest(group, stop, step)
        except RuntimeError:
            continue
    return []


def _positions(count: int, sample: int, offset: int) -> list[int]:
    """Return *sample* of *count* positions, in no rhythm that elements may have, too; each half in order."""
    step = round(count * _GOLDEN)
    while math.gcd(step, count) != 1:
        step += 1
    chosen = [(offset + number * step) % count for number in range(sample)]
    half = sample // 2
    return sorted(chosen[:half]) + sorted(chosen[half:])


def _parts(value: Any, kind: type) -> Parts:
    # By its type: to ask an instance for its class may wake a proxy.
    if issubclass(kind, dict):
        return _rounded(_own_bytes(value)), (dict.values(value), _names(value, dict.keys(value)))
    if issubclass(kind, _CONTAINERS):
        # The table of a list is allocated apart. Subclasses may do anything when iterated.
        own = _rounded(_own_bytes(value) + (8 if kind is list else 0))
        held = value if kind in _CONTAINERS else gc.get_referents(value)
        return own, (_names(value, held) if issubclass(kind, _SETS) else held,)
    if issubclass(kind, _NOT_OWNED):
        return 0, ()
    if issubclass(kind, io.BytesIO):
        # Its size has its buffer in it, which from CPython 3.12 on is told as one of its parts, too.
        return _rounded(_own_bytes(value)), ([part for part in gc.get_referents(value) if type(part) is not bytes],)
    try:
        told = _told_parts(value, kind)
    except Exception:  # of others' code
        told = None
    return told or _object_parts(value, kind)


def _told_parts(value: Any, kind: type) -> Parts | None:
    """Return what is known better than by looking at what *value* refers to, if there is."""
    if kind is memoryview:
        return _rounded(_own_bytes(value)), ((value.obj,),)
    outside = _outside_bytes(value, kind)
    if outside is not None:
        return _rounded(_own_bytes(value)) + _rounded(outside), (gc.get_referents(value),)
    if issubclass(kind, getattr(sys.modules.get("numpy"), "ndarray", ())):
        return _array_parts(value, kind)
    if _packages_of(kind).isdisjoint(_ELSEWHERE):
        return None
    told = value.estimated_size() if hasattr(value, "estimated_size") else getattr(value, "nbytes", None)
    return None if told is None else (int(told), ())


def _object_parts(value: object, kind: type) -> Parts:
    # What pandas calls the size of a table has all in it.
    in_all = "pandas" in _packages_of(kind)
    size = object.__sizeof__(value) + _ALLOCATION if in_all else _own_bytes(value)
    # Not by __dict__: to ask for it makes one, and the object larger for ever.
    held = [each for each in gc.get_referents(value) if not issubclass(type(each), _NOT_OWNED)]
    if kind.__flags__ & _MANAGED_DICT and not any(type(each) is dict for each in held):
        size += _INLINE_BYTES + 8 * len(held)
    return _rounded(size), (held,)


def _array_parts(value: Any, kind: type) -> Parts:
    size = _own_bytes(value)
    groups: list[Collection[Any]] = [] if kind.__module__ == "numpy" else [gc.get_referents(value)]
    base = value.base
    if base is not None:
        # A view of sixteen numbers keeps all of the array that it looks at.
        groups.append((base,))
        seen = isinstance(base, (*_BUFFERS, sys.modules["numpy"].ndarray)) or type(base).__module__ in ("array", "mmap")
        size += 0 if seen else value.nbytes
    elif value.dtype.hasobject:
        groups.append(value.flat)
    return _rounded(size), groups


def _outside_bytes(value: Any, kind: type) -> int | None:
    """Return the bytes that *value* holds beside what Python says of it; None if it is not of those that do."""
    if kind is io.StringIO:
        return _text_bytes(value)
    if issubclass(kind, getattr(sys.modules.get("mmap"), "mmap", ())):
        return len(value)
    if issubclass(kind, _c_data()):
        nbytes: int = sys.modules["_ctypes"].sizeof(value) if value._b_needsfree_ else 0
        return nbytes
    return None


def _text_bytes(value: io.StringIO) -> int:
    """Return the bytes of a text in memory: of four for a character, unless it was only ever added to."""
    position = value.tell()
    # In one step of the interpreter, so that no other thread reads in between.
    end, _ = map(value.seek, (0, position), (2, 0))
    return end if position == end else 4 * end


def _c_data() -> type | tuple[()]:
    """Return the class of all that ctypes holds outside of Python; it is never imported for this."""
    array = getattr(sys.modules.get("_ctypes"), "Array", None)
    return () if array is None else array.__mro__[1]


def _packages_of(kind: type) -> set[str]:
    """Return the packages of *kind* and its bases; past what a metaclass says of them."""
    found = set()
    for base in _MRO(kind):
        try:
            found.add(str(_MODULE(base)).partition(".")[0])
        except AttributeError:  # it has none
            continue
    return found


_MRO: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_MODULE: Callable[[type], object] = type.__dict__["__module__"].__get__


def _own_bytes(value: object) -> int:
    try:
        return sys.getsizeof(value)
    except Exception:
        return object.__sizeof__(value)  # its own __sizeof__ is broken


def _rounded(size: int) -> int:
    return (size + _ALLOCATION - 1) & -_ALLOCATION


def _names(holder: object, elements: Collection[Any]) -> Collection[Any]:
    """Return *elements* without the strings that others hold, too; all where they are so many that they are sampled."""
    if len(elements) > _SAMPLE:
        return elements
    alone = _ALONE + issubclass(type(holder), OrderedDict)  # it holds each key twice
    return [each for each in _snapshot(elements) if type(each) is not str or sys.getrefcount(each) <= alone]


def _references_of_one_holder() -> int:
    """Return what getrefcount says of an element, in the loop of :func:`_names`, that only its container holds."""
    holder = {str(object())}
    return next(iter([sys.getrefcount(each) for each in _snapshot(holder)]))


_ALONE = _references_of_one_holder()
