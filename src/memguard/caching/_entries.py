"""
The entries of a cache: their order, sizes and ages, within bounds. Bookkeeping alone: no lock, weighing or callback.

Readers that take no lock look at :attr:`Entries.data` and :attr:`Entries.expires` meanwhile. For their sake the
expiry of a new entry is written before the entry, and that of an old one removed after it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any, TypeAlias

from memguard.caching._bounds import UNBOUNDED
from memguard.caching._statistics import EvictionReason

Gone: TypeAlias = list[tuple[Any, Any, EvictionReason]]
"""Key, what was held, and why it went."""

_SWEEPS_A_LIFE = 16
"""How often in a time to live all entries are looked through for those that have expired, at most."""
_NEVER = math.inf


def pairs_of(data: dict[Any, Any], count: int | None = None, *, newest: bool = False) -> list[tuple[Any, Any]]:
    """
    Return so many keys and values, without hashing; as a dict has them: by when they were stored.

    Some change *data* without the lock. No other thread comes in between, unless the collector runs, which up to Python
    3.11 may be at any pair that is made, and lets code of the program run; then it begins again.
    """
    while True:
        items = dict.items(data)
        try:
            return list(islice(reversed(items) if newest else items, count))
        except RuntimeError:  # it changed meanwhile
            continue


class Entries:
    """
    Entries in order, the least recently used first.

    Attributes:
        data: What is held, by key.
        sizes: The bytes of each; None where they do not count.
        expires: When each is over; None where ages do not count.
        total_bytes: The sum of the sizes.
        direct: Whether what is held are the values themselves, without ages, and may be read without the lock.
    """

    __slots__ = (
        "_earliest",
        "_lives",
        "_now",
        "_ttl",
        "cap_bytes",
        "cap_entries",
        "data",
        "direct",
        "evictions",
        "expirations",
        "expires",
        "max_bytes",
        "max_entries",
        "sizes",
        "sweep_at",
        "total_bytes",
        "touch",
    )

    def __init__(self, max_entries: int, max_bytes: int, ttl: float | None, now: Callable[[], float]) -> None:
        self.max_entries = self.cap_entries = max_entries
        self.max_bytes = self.cap_bytes = max_bytes
        self.data: OrderedDict[Hashable, Any] = OrderedDict()
        self.touch = self.data.move_to_end
        self.sizes: dict[Hashable, int] | None = None if max_bytes == UNBOUNDED else {}
        self.expires: dict[Hashable, float] | None = None if ttl is None else {}
        self.direct = False
        self.total_bytes = self.evictions = self.expirations = 0
        self.sweep_at = self._earliest = _NEVER
        self._lives: dict[Hashable, float] = {}  # the times to live that are not the cache's own
        self._ttl = ttl
        self._now = now

    def put(self, key: Any, held: Any, size: int, ttl: float | None, gone: Gone) -> None:
        """Hold *held* under *key*, used now; drop what no longer fits."""
        data = self.data
        if key in data:
            before = data[key]
            data[key] = held
            self.touch(key)
            if self.expires is not None:
                self._set_expiry(key, ttl)
            if before is not held:
                gone.append((key, before, "replaced"))
        else:
            if self.expires is not None:
                self._set_expiry(key, ttl)
            data[key] = held
        if self.sizes is not None:
            self.total_bytes += size - self.sizes.get(key, 0)
            self.sizes[key] = size
        self.trim(gone, self.cap_bytes, self.cap_entries)

    def trim(self, gone: Gone, cap_bytes: int, cap_entries: int, most: int = UNBOUNDED) -> None:
        """Drop the least recently used entries, *most* at a time, until no more than the caps are left."""
        data, sizes, dropped = self.data, self.sizes, 0
        while data and dropped < most:
            reason: EvictionReason
            if self.total_bytes > cap_bytes:
                reason = "size" if self.total_bytes > self.max_bytes else "pressure"
            elif len(data) > cap_entries:
                reason = "entries" if len(data) > self.max_entries else "pressure"
            else:
                return
            key, held = data.popitem(last=False)
            dropped += 1
            if sizes is not None:
                self.total_bytes -= sizes.pop(key, 0)
            if self.expires is not None and self._now() >= self._forget_expiry(key):
                self.expirations += 1
                reason = "expired"
            else:
                self.evictions += 1
            gone.append((key, held, reason))

    def remove(self, key: Any, reason: EvictionReason, gone: Gone) -> None:
        """Drop *key*, which is there."""
        held = self.data.pop(key)
        if self.sizes is not None:
            self.total_bytes -= self.sizes.pop(key, 0)
        if self.expires is not None:
            self._forget_expiry(key)
        gone.append((key, held, reason))

    def clear(self, gone: Gone) -> None:
        """Drop all."""
        gone.extend((key, held, "deleted") for key, held in pairs_of(self.data))
        self.data.clear()
        for part in (self.sizes, self.expires, self._lives):
            if part is not None:
                part.clear()
        self.total_bytes = 0
        self.sweep_at = self._earliest = _NEVER

    def weigh(self, key: Any, held: Any, size: int) -> None:
        """Count *size* for an entry from before sizes counted, if it still is the same."""
        if self.sizes is not None and self.data.get(key) is held and key not in self.sizes:
            self.sizes[key] = size
            self.total_bytes += size

    # ----- age

    def begin_expiring(self) -> None:
        """Keep ages from now on; what is there never expires."""
        if self.expires is None:
            self.expires = dict.fromkeys(self.data, _NEVER)

    def is_expired(self, key: Any) -> bool:
        """Tell whether *key* is over, there or not."""
        expires = self.expires
        return expires is not None and self._now() >= expires.get(key, _NEVER)

    def grow_young(self, key: Any, now: float) -> None:
        """Let *key* live as long again from *now* as it was given. Readers call this without the lock."""
        expires = self.expires
        assert expires is not None
        ttl = _NEVER if self._ttl is None else self._ttl
        expires[key] = now + (self._lives.get(key, ttl) if self._lives else ttl)
        if key not in self.data:  # it went meanwhile, and its age shall not stay
            expires.pop(key, None)

    def may_have_expired(self) -> bool:
        """Tell whether something may be over by now."""
        return self.expires is not None and self._now() >= self._earliest

    def expired(self) -> list[Any]:
        """Return the keys that are over, and plan when to look again."""
        if self.expires is None:
            return []
        now = self._now()
        over, earliest = [], _NEVER
        for key, at in pairs_of(self.expires):
            if at <= now:
                over.append(key)
            elif at < earliest:
                earliest = at
        self._earliest = earliest
        life = earliest - now if self._ttl is None else self._ttl
        self.sweep_at = max(earliest, now + life / _SWEEPS_A_LIFE)
        return over

    def _set_expiry(self, key: Any, ttl: float | None) -> None:
        assert self.expires is not None
        life = _NEVER if ttl is None else ttl
        if ttl != self._ttl:
            self._lives[key] = life
        elif self._lives:
            self._lives.pop(key, None)
        at = self._now() + life
        self.expires[key] = at
        if at < self._earliest:
            self._earliest = at
            self.sweep_at = min(self.sweep_at, at + life / _SWEEPS_A_LIFE)

    def _forget_expiry(self, key: Any) -> float:
        """Forget when *key* is over; return it."""
        assert self.expires is not None
        if self._lives:
            self._lives.pop(key, None)
        return self.expires.pop(key, _NEVER)
