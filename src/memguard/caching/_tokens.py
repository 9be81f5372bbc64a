"""
What stands for an object in a key, so that the key does not hold it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

_DEAD_SHARE = 8
_Known: TypeAlias = tuple[weakref.ref[Any], object]


class Tokens:
    """
    A token for each object, as long as it lives.

    Args:
        drop: Forgets the results of objects that are gone, by their tokens.
        kept: Returns how many results there are.
    """

    def __init__(self, drop: Callable[[set[object]], object], kept: Callable[[], int]) -> None:
        self._by_id: dict[int, _Known] = {}
        self._dead: set[object] = set()
        self._drop = drop
        self._kept = kept

    def __call__(self, instance: Any) -> Any:
        """Return the token of *instance*; itself if it takes no weak reference."""
        known = self._by_id.get(id(instance))
        if known is not None and known[0]() is instance:
            return known[1]
        return self._new(instance)

    def _new(self, instance: Any) -> Any:
        token, number, by_id = object(), id(instance), self._by_id

        def died(reference: weakref.ref[Any]) -> None:
            known = by_id.get(number)
            if known is not None and known[0] is reference:
                del by_id[number]
                self._dead.add(token)  # not more: it may come at any moment

        try:
            mine = weakref.ref(instance, died), token
        except TypeError:
            return instance
        known = by_id.setdefault(number, mine)  # of two threads one is first
        if known[0]() is not instance:  # of one that had this address before
            by_id[number] = known = mine
        # All results are looked through, so not for each object that is gone.
        if len(self._dead) * _DEAD_SHARE > self._kept():
            dead, self._dead = self._dead, set()
            self._drop(dead)
        return known[1]
