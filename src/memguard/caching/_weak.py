"""
Values that are held weakly: they go when nobody else holds them.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from memguard.caching._entries import Entries, Gone


class WeakValues:
    """The weak references of one cache, and the keys of those that died."""

    __slots__ = ("_dead",)

    def __init__(self) -> None:
        self._dead: deque[tuple[Any, weakref.ref[Any]]] = deque()

    def hold(self, key: Any, value: Any) -> weakref.ref[Any]:
        """
        Return what is held for *value*.

        Raises:
            TypeError: It takes no weak reference.
        """
        dead = self._dead

        def died(reference: weakref.ref[Any]) -> None:
            dead.append((key, reference))  # not more: it may come at any moment

        try:
            return weakref.ref(value, died)
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"weak_values=True cannot hold a {kind}: it takes no weak reference") from None

    def bury(self, entries: Entries) -> None:
        """Drop the entries whose values died."""
        while self._dead:
            try:
                key, reference = self._dead.popleft()
            except IndexError:  # another thread was first
                return
            entry = entries.find(key)
            if entry is not None and getattr(entry, "value", None) is reference:
                gone: Gone = []
                entries.drop(entry, "deleted", gone)
