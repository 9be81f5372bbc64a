"""
Keys, by whether to compare them is one step of the interpreter or runs code of the program.

A key whose hash or comparison may be Python is stored in a case that remembers its hash. So an entry can be dropped
without asking its key anything, and also if its hash has changed. To look a key up takes no case: the table compares
the case with it, and the case its key.
"""

from __future__ import annotations

from typing import Any

PLAIN_KEYS = frozenset((str, int, bytes, float, bool, type(None), object))
"""Their hash and comparison are C, as are those of tuples of them."""


class OddKey:
    """The case of a key whose hash or comparison may be Python."""

    __slots__ = ("_hash", "key")

    def __init__(self, key: Any) -> None:
        self.key = key
        self._hash = hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        key = other.key if type(other) is OddKey else other
        return self.key is key or bool(self.key == key)


def stored(key: Any) -> Any:
    """Return what stands for *key* in the table."""
    if type(key) in PLAIN_KEYS or (type(key) is tuple and all(type(part) in PLAIN_KEYS for part in key)):
        return key
    return OddKey(key)


def original(key: Any) -> Any:
    """Return the key of which :func:`stored` made *key*."""
    return key.key if type(key) is OddKey else key
