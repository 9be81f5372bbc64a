"""
Keys, by whether to compare them is one step of the interpreter or runs code of the program.

Not even a dict stands it that another thread changes it while a comparison written in Python runs inside of a look-up:
CPython crashes, up to 3.13 at least. So a key whose hash or comparison may be Python is never looked up in a dict that
others change. Its hash is, as a number, and its comparison runs outside of all tables.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from memguard.forking import forget_in_child

V = TypeVar("V")

PLAIN_KEYS = frozenset((str, int, bytes, float, bool, type(None), object))
"""Their hash and comparison are C, as are those of tuples of them."""


def is_plain(key: Any) -> bool:
    """Tell whether nothing of *key*'s hash and comparison is Python."""
    kind = type(key)
    return kind in PLAIN_KEYS or (kind is tuple and all(type(part) in PLAIN_KEYS for part in key))


class OddKey:
    """Stands in the table for a key that must not be looked up there; it is equal to itself alone."""

    __slots__ = ("hashed", "key")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.hashed = hash(key)


def stored(key: Any) -> Any:
    """Return what stands for *key* in the table."""
    return key if is_plain(key) else OddKey(key)


def original(key: Any) -> Any:
    """Return the key of which :func:`stored` made *key*."""
    return key.key if type(key) is OddKey else key


class _Probe(list[Any]):
    """
    Finds the keys of a dict that have a hash: looked up there, it is equal to none, and keeps those it met.

    All of that in C, so that no other thread comes in between.
    """

    __hash__ = list.pop  # type: ignore[assignment]
    __eq__ = list.append  # type: ignore[assignment]


def of_hash(table: dict[Any, Any], hashed: int) -> list[Any]:
    """Return the plain keys of *table* that have the hash *hashed*."""
    probe = _Probe([hashed])
    table.get(probe)
    return list(probe)


class Table(Generic[V]):
    """Values by keys of any kind, from any thread: a comparison written in Python runs outside of it."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[tuple[Any, V], ...]] = {}
        self._lock = threading.RLock()
        forget_in_child(self)

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()

    def matching(self, key: Any, hashed: int) -> Iterator[V]:
        """Return the values of keys that are equal to *key*, the first that came first."""
        for each, value in self._rows.get(hashed, ()):
            if each is key or each == key:
                yield value

    def get(self, key: Any) -> V | None:
        """Return the value of *key*; None if there is none."""
        return next(self.matching(key, hash(key)), None)

    def add(self, key: Any, hashed: int, value: V) -> None:
        """Hold *value*, too."""
        with self._lock:
            self._rows[hashed] = (*self._rows.get(hashed, ()), (key, value))

    def setdefault(self, key: Any, value: V) -> V:
        """Return the value of *key*; hold *value* first if there is none."""
        hashed = hash(key)
        for found in self.matching(key, hashed):
            return found
        self.add(key, hashed, value)
        for found in self.matching(key, hashed):
            if found is not value:  # another thread was first
                self.discard(hashed, value)
            return found
        return value  # it is not equal to itself

    def discard(self, hashed: int, value: V) -> None:
        """Let go of *value*."""
        with self._lock:
            left = tuple(row for row in self._rows.get(hashed, ()) if row[1] is not value)
            if left:
                self._rows[hashed] = left
            else:
                self._rows.pop(hashed, None)

    def values(self) -> list[V]:
        """Return all values."""
        with self._lock:
            rows = list(self._rows.values())
        return [value for row in rows for _, value in row]

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._rows = {}
