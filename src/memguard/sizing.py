"""
What a value costs in bytes: an estimate that is honest, in bounded time.

What is shared is counted once; long containers are sampled; NumPy and pandas say themselves what they hold, and are
never imported for it. Names of fields, which all records of a kind share, are not counted for each.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

MAX_OBJECTS = 5000
_ALLOCATION = 16
"""Allocators round up to this, Python's own and glibc's."""
_HALVES = (64, 16, 8, 4)
"""How many elements of a long container stand for the rest, by how deep it lies; twice as many are looked at."""
_INLINE_BYTES = 16
_SHARED_REFERENCES = 3
"""A key that only its dict holds has three: the dict's, the loop's and the argument of getrefcount."""

_FREE = (type(None), bool, type(Ellipsis), type(NotImplemented))
_SMALL_INTEGERS = range(-5, 257)
_NOT_OWNED = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
    property,
)
"""What a value refers to without holding it: it is there anyway."""
_SEQUENCES = (list, tuple, set, frozenset, deque)
_HAS_INLINE_VALUES = 1 << 4  # Py_TPFLAGS_MANAGED_DICT


def deep_sizeof(value: object, *, max_objects: int = MAX_OBJECTS) -> int:
    """
    Return about how many bytes *value* takes, with all that it holds.

    Within a tenth for most shapes; a container whose elements differ wildly may be a fifth off. Microseconds for a
    record, a fifth of a millisecond for a thousand of them, whatever the length of containers.

    Args:
        value: Anything.
        max_objects: Look at so many objects at most, and take the rest for as large as those.

    Raises:
        ValueError: *max_objects* is below 1.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bytes or kind is float:  # most keys, and many values
        return (sys.getsizeof(value) + _ALLOCATION - 1) & -_ALLOCATION
    if max_objects < 1:
        raise ValueError(f"max_objects is 1 or more, got {max_objects!r}")
    return round(_Walk(max_objects).size([value], 0))


class _Walk:
    """One walk over what a value holds."""

    __slots__ = ("_left", "_seen")

    def __init__(self, max_objects: int) -> None:
        self._left = max_objects
        self._seen: set[int] = set()

    def size(self, roots: Iterable[object], depth: int) -> float:
        """Return the bytes of *roots* and what they hold, as far as this walk has not seen it."""
        stack = list(roots)
        seen, total, looked = self._seen, 0.0, 0
        while stack:
            if self._left <= 0:
                # The rest is taken for as large as what was looked at.
                return total * (looked + len(stack)) / looked if looked else 0.0
            value = stack.pop()
            kind = type(value)
            if kind in _FREE or (kind is int and value in _SMALL_INTEGERS):
                continue
            identity = id(value)
            if identity in seen:
                continue
            seen.add(identity)
            self._left -= 1
            looked += 1
            if kind is str or kind is int or kind is float or kind is bytes:
                total += _rounded(sys.getsizeof(value))
            else:
                total += self._one(value, stack, depth)
        return total

    def _one(self, value: Any, stack: list[object], depth: int) -> float:
        """Return the bytes of *value* itself; what it holds goes on the stack, or is sampled and added."""
        if isinstance(value, dict):
            return _rounded(sys.getsizeof(value)) + self._many(stack, depth, dict.values(value), _owned_keys(value))
        if isinstance(value, _SEQUENCES):
            return _rounded(sys.getsizeof(value)) + self._many(stack, depth, value)
        if isinstance(value, _NOT_OWNED):
            return 0.0
        told = _told_bytes(value, stack)
        if told is not None:
            return told
        return self._object(value, stack)

    def _many(self, stack: list[object], depth: int, *groups: Any) -> float:
        """
        Put the elements of *groups* on the stack, or size a sample of them.

        The first half is counted as it is, the second by what it adds: so what all elements share is counted once.
        """
        half = _HALVES[min(depth, len(_HALVES) - 1)]
        total = 0.0
        for group in groups:
            count = len(group)
            if count <= 2 * half:
                stack.extend(group)
                continue
            sample = _spread(group, 2 * half)
            first = self.size(sample[::2], depth + 1)
            total += first + self.size(sample[1::2], depth + 1) * (count - half) / half
        return total

    @staticmethod
    def _object(value: object, stack: list[object]) -> float:
        try:
            size = sys.getsizeof(value)
        except Exception:
            size = object.__sizeof__(value)  # its own __sizeof__ is broken
        # Not by __dict__: to ask for it makes one, and the object larger for ever.
        held = [each for each in gc.get_referents(value) if not isinstance(each, _NOT_OWNED)]
        stack.extend(held)
        if type(value).__flags__ & _HAS_INLINE_VALUES and not any(type(each) is dict for each in held):
            size += _INLINE_BYTES + 8 * len(held)
        return _rounded(size)


def _rounded(size: int) -> int:
    return (size + _ALLOCATION - 1) & -_ALLOCATION


def _owned_keys(value: dict[Any, Any]) -> Sequence[object]:
    """Return the keys that nobody else holds, of a dict that is not so long that they are sampled anyway."""
    if len(value) > 2 * _HALVES[0]:
        return list(islice(dict.keys(value), len(value)))
    return [key for key in dict.keys(value) if sys.getrefcount(key) <= _SHARED_REFERENCES]


def _spread(group: Any, count: int) -> list[object]:
    """Return *count* elements from all over *group*."""
    step = max(1, len(group) // count)
    if isinstance(group, (list, tuple)):
        return list(group[: step * count : step])
    return list(islice(iter(group), 0, step * count, step))


def _told_bytes(value: Any, stack: list[object]) -> float | None:
    """Return what an array or table says of itself; None of anything else."""
    module = type(value).__module__.partition(".")[0]
    if module == "pandas" and hasattr(value, "memory_usage"):
        return _table_bytes(value)
    if module == "numpy" and hasattr(value, "nbytes"):
        return _array_bytes(value, stack)
    if isinstance(value, memoryview):
        stack.append(value.obj)
        return float(_rounded(sys.getsizeof(value)))
    if module in ("pyarrow", "polars", "torch", "cupy", "jax", "xarray"):
        told = value.estimated_size() if hasattr(value, "estimated_size") else getattr(value, "nbytes", None)
        return None if told is None else float(told)
    return None


def _array_bytes(value: Any, stack: list[object]) -> float:
    # A view of sixteen numbers keeps all of the array that it looks at.
    owner = value
    while type(getattr(owner, "base", None)).__module__.partition(".")[0] == "numpy":
        owner = owner.base
    if owner is not value:
        stack.append(owner)
        return float(_rounded(sys.getsizeof(value)))
    size = float(owner.nbytes) + 112
    if getattr(owner.dtype, "hasobject", False):
        stack.append(owner.ravel().tolist())
        size -= 8 * owner.size + 56  # the list that stands in for it
    return size


def _table_bytes(value: Any) -> float:
    def total(table: Any, *, deep: bool) -> float:
        told = table.memory_usage(deep=deep)
        return float(told.sum() if hasattr(told, "sum") else told)

    size = total(value, deep=False)
    rows = len(value)
    if rows == 0 or not hasattr(value, "iloc"):
        return size
    head = value.iloc[:128]
    return size + (total(head, deep=True) - total(head, deep=False)) * rows / len(head)
