"""
One entry of a cache. It is there as long as it has a value: whoever takes the value away has dropped it.

An entry that is gone may still stand in lists for a while. Whoever comes by leaves it out.
"""

from __future__ import annotations

import math
from typing import Any

NEVER = math.inf


class Entry:
    """
    A key and what is held under it.

    Attributes:
        key: As the table has it; see ``_keys``.
        value: What is held. An entry without it is gone.
        used: The tick of the last use; negative while it was not read since the order looked at it.
        size: Its bytes.
        expires: When it is over.
    """

    __slots__ = ("key", "used", "value")

    key: Any
    value: Any
    used: int
    size: int = 0
    expires: float = NEVER


class SizedEntry(Entry):
    """One whose bytes count."""

    __slots__ = ("size",)


class TimedEntry(SizedEntry):
    """
    One that grows old.

    Attributes:
        due: When it is looked at: at its end, or before.
        life: The seconds that it was given.
    """

    __slots__ = ("due", "expires", "life")

    due: float
    life: float


def is_there(entry: Entry) -> bool:
    """Tell whether nobody has dropped *entry*."""
    return hasattr(entry, "value")
