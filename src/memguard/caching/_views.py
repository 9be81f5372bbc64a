"""
Views of a cache: to look at an entry is not to use it.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any, Final, Protocol, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Missing:
    """No value, where None may be one."""

    def __repr__(self) -> str:
        return "..."


MISSING: Final = Missing()


class Peekable(Protocol[K]):
    """What can be looked at."""

    def __iter__(self) -> Iterator[K]: ...
    def __len__(self) -> int: ...
    def peek(self, key: K, default: Any = None) -> Any:
        """Return a value without using it."""
        ...


class Items(ItemsView[K, V]):
    """Entries."""

    def __init__(self, cache: Peekable[K]) -> None:
        self._cache = cache

    def __len__(self) -> int:
        return len(self._cache)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        for key in self._cache:
            value = self._cache.peek(key, MISSING)
            if value is not MISSING:
                yield key, value

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        value = self._cache.peek(item[0], MISSING)
        return value is not MISSING and (value is item[1] or value == item[1])


class Values(ValuesView[V]):
    """Values."""

    def __init__(self, cache: Peekable[Any]) -> None:
        self._items: Items[Any, V] = Items(cache)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._items)

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for each in self)
