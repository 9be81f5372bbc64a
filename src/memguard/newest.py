"""
Looking at the newest elements of something that other threads may change.

``reversed()`` of a dict or of a view of it remembers a position in the dict's table, and CPython up to 3.13 at least
does not look whether the table has become shorter: if another thread changes the dict between the call and the first
step, the interpreter crashes. So the iterator is made and used within one call, in which no other thread runs.
"""

from __future__ import annotations

from collections.abc import Reversible
from itertools import chain, islice
from typing import TypeVar

_T = TypeVar("_T")


def newest(elements: Reversible[_T], stop: int | None = None, step: int = 1) -> list[_T]:
    """
    Return elements of *elements*, a list, deque, dict or view of a dict, from its end on.

    Args:
        elements: Not of a class of the program, whose code would run in the midst of it.
        stop: Of so many of them.
        step: Each that comes after so many.

    Raises:
        RuntimeError: Another thread changed it meanwhile.
    """
    return list(islice(chain.from_iterable(map(reversed, (elements,))), 0, stop, step))
