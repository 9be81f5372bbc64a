"""
A cache that does what it is configured for, and no more: the same as ``_lru`` and ``_entries`` do, in one piece.

Rule: between the first and the last assignment of a change there is no call that runs Python; see ``_entries``. So
these classes are for interpreters with a GIL, and those that store are for keys whose hash and comparison are C.
"""

from __future__ import annotations

from typing import Any, TypeVar

from memguard.caching._bounds import weight_of
from memguard.caching._entries import FREE_THREADED
from memguard.caching._entry import NEVER, Entry, SizedEntry, TimedEntry
from memguard.caching._keys import PLAIN_KEYS
from memguard.caching._lru import LRUCache
from memguard.caching._order import SHIFT
from memguard.caching._pressure import LOOK_BYTES

K = TypeVar("K")
V = TypeVar("V")


class Direct(LRUCache[K, V]):
    """What it holds are the values themselves, without ages. Stores like any other."""

    __slots__ = ()

    @property
    def _public(self) -> type[LRUCache[Any, Any]]:
        return LRUCache

    def __contains__(self, key: Any) -> bool:
        if type(key) is not str and type(key) not in PLAIN_KEYS:
            return LRUCache.__contains__(self, key)
        entry = self._data.get(key)
        return hasattr(entry, "value") or (self._entries.odd and LRUCache.__contains__(self, key))

    def get(self, key: K, default: Any = None, /) -> Any:
        if type(key) is not str and type(key) not in PLAIN_KEYS:
            return LRUCache.get(self, key, default)
        entry = self._data.get(key)
        if entry is None:
            if self._entries.odd:
                return LRUCache.get(self, key, default)
            self._entries.misses += 1
            return default
        try:
            value = entry.value
            entries = self._entries
            entries.ticks = entry.used = entries.ticks + 1
            return value
        except AttributeError:  # it went meanwhile
            return LRUCache.get(self, key, default)

    def __getitem__(self, key: K, /) -> V:
        if type(key) is str or type(key) in PLAIN_KEYS:
            try:
                entry = self._data[key]
                value: V = entry.value
                entries = self._entries
                entries.ticks = entry.used = entries.ticks + 1
                return value
            except (AttributeError, KeyError):
                pass
        return LRUCache.__getitem__(self, key)

    def _stay_general(self) -> None:
        if type(self) is not Direct:
            self.__class__ = Direct

    def _respecialise(self) -> None:
        self.__class__ = self._fitting()  # type: ignore[assignment]


class Counted(Direct[K, V]):
    """Where nothing but entries counts."""

    __slots__ = ()

    def __setitem__(self, key: K, value: V, /) -> None:
        entries, data = self._entries, self._data
        if (type(key) is not str and type(key) not in PLAIN_KEYS) or entries.midway:
            self._store(key, value, None)
            return
        entry = before = None  # what goes lives until the change is over
        tick = 0
        try:
            if key in data:
                entry = data[key]
                before = entry.value
                entry.value = value
                entries.ticks = entry.used = entries.ticks + 1
                entries.renewals += 1
            else:
                new = Entry()
                new.key = key
                victims = entries.victims
                if victims and victims[-1].used > 0:
                    entries.find_oldest()
                if key in data or entries.odd:
                    raise KeyError(key)
                if entries.count < entries.cap_entries:
                    entries.midway = True
                    entries.count += 1
                else:  # one goes for one that comes
                    entry = victims[-1]
                    before = entry.value  # noqa: F841
                    if entry.used > 0 or entries.count > entries.cap_entries:
                        raise KeyError(key)
                    entries.midway = True
                    del entry.value
                    del victims[-1]
                    del data[entry.key]
                    entries.evictions += 1
                new.value = value
                entries.ticks = tick = entries.ticks + 1
                new.used = -tick
                data[key] = new
                entries.midway = False
                entries.lists[tick >> SHIFT].append(new)
        except (AttributeError, IndexError, KeyError):
            if tick:
                entries.order.add(new)  # stored, but for its tick there was no list yet
            else:
                self._store(key, value, None)
        self._unlooked += self._each_bytes
        if self._unlooked >= LOOK_BYTES:
            self._look()


class Weighed(Direct[K, V]):
    """Where bytes count, too."""

    __slots__ = ()

    def __setitem__(self, key: K, value: V, /) -> None:  # noqa: C901, PLR0912, PLR0915 - each call would cost a tenth
        entries, data, sizeof = self._entries, self._data, self._sizeof
        if sizeof is None:
            size = self._weigh(key, value)
        else:
            size = sizeof(value)
            if type(size) is not int or size < 0:
                size = weight_of(size, value)
        if (type(key) is not str and type(key) not in PLAIN_KEYS) or size > self._max_entry_bytes or entries.midway:
            self._put(key, value, size)
            return
        entry: Any = None
        before = None  # what goes lives until the change is over
        tick = 0
        try:
            if key in data:
                entry = data[key]
                before = entry.value
                total = entries.total_bytes + size - entry.size
                if total > entries.cap_bytes:
                    raise KeyError(key)
                entries.midway = True
                entry.size = size
                entry.value = value
                entries.total_bytes = total
                entries.ticks = entry.used = entries.ticks + 1
                entries.renewals += 1
                entries.midway = False
            else:
                new = SizedEntry()
                new.key = key
                new.size = size
                victims = entries.victims
                if victims and victims[-1].used > 0:
                    entries.find_oldest()
                if key in data or entries.odd:
                    raise KeyError(key)
                total = entries.total_bytes + size
                if total <= entries.cap_bytes and entries.count < entries.cap_entries:
                    entries.midway = True
                    entries.count += 1
                else:  # one goes for one that comes
                    entry = victims[-1]
                    before = entry.value  # noqa: F841
                    total -= entry.size
                    if entry.used > 0 or total > entries.cap_bytes or entries.count > entries.cap_entries:
                        raise KeyError(key)
                    entries.midway = True
                    del entry.value
                    del victims[-1]
                    del data[entry.key]
                    entries.evictions += 1
                new.value = value
                entries.ticks = tick = entries.ticks + 1
                new.used = -tick
                entries.total_bytes = total
                data[key] = new
                entries.midway = False
                entries.lists[tick >> SHIFT].append(new)
        except (AttributeError, IndexError, KeyError):
            if tick:
                entries.order.add(new)  # stored, but for its tick there was no list yet
            else:
                self._put(key, value, size)
                return
        # At its bound it grows no more; held below it, it still has to ask whether it may.
        if entry is not None:
            self._unlooked += size
            if self._unlooked >= LOOK_BYTES:
                self._look()
        elif total > self._look_bytes:
            self._look()


class Timed(LRUCache[K, V]):
    """What it holds are the values themselves."""

    __slots__ = ()

    @property
    def _public(self) -> type[LRUCache[Any, Any]]:
        return LRUCache

    def get(self, key: K, default: Any = None, /) -> Any:
        entries = self._entries
        if type(key) is not str and type(key) not in PLAIN_KEYS:
            return LRUCache.get(self, key, default)
        entry = entries.data.get(key)
        if entry is None and not entries.odd:
            entries.misses += 1
            return default
        now = self._now()
        if entry is None or now >= entry.expires:
            return LRUCache.get(self, key, default)
        try:
            value = entry.value
        except AttributeError:  # it went meanwhile
            entries.misses += 1
            return default
        entries.ticks = entry.used = entries.ticks + 1
        if self._sliding:
            self._make_young(entry)
        return value

    def __setitem__(self, key: K, value: V, /) -> None:
        entries, ttl, ages = self._entries, self._ttl, self._entries.ages
        if (
            (type(key) is not str and type(key) not in PLAIN_KEYS)
            or ttl is None
            or ages is None
            or self._weighed
            or self._on_evict is not None
            or entries.midway
        ):
            self._store(key, value, ttl)
            return
        now = self._now()
        if ages.soonest <= now or not (self._renew(key, value, ttl, now) or self._insert(key, value, ttl, now)):
            self._store(key, value, ttl)
            return
        self._unlooked += self._each_bytes
        if self._unlooked >= LOOK_BYTES:
            self._look()

    def _renew(self, key: K, value: V, ttl: float, now: float) -> bool:
        """Store in the place of what is there; False if that is not so simple."""
        entries = self._entries
        entry: Any = entries.data.get(key)
        expires = now + ttl
        if type(entry) is not TimedEntry or expires < entry.due or entry.expires <= now:
            return False
        try:
            before = entry.value  # noqa: F841 - lives until the change is over
            entry.life = ttl
            entry.expires = expires
            entry.value = value
            entries.ticks = entry.used = entries.ticks + 1
            entries.renewals += 1
        except AttributeError:  # it is gone
            return False
        return True

    def _insert(self, key: K, value: V, ttl: float, now: float) -> bool:
        """Store what is not there, in the place of a victim if there has to be one; False if that is not so simple."""
        entries, data, tick = self._entries, self._data, 0
        new: Any = TimedEntry()
        new.key, new.size, new.life, new.expires, new.due = key, 0, ttl, now + ttl, NEVER
        try:
            if key in data or entries.odd:
                return False
            if entries.count < entries.cap_entries:
                entries.midway = True
                entries.count += 1
            else:  # one goes for one that comes
                victims = entries.victims
                entry = victims[-1]
                before = entry.value  # noqa: F841 - lives until the change is over
                if entry.used > 0 or entries.count > entries.cap_entries or entry.expires <= now:
                    return False
                entries.midway = True
                del entry.value
                del victims[-1]
                del data[entry.key]
                entries.evictions += 1
            new.value = value
            entries.ticks = tick = entries.ticks + 1
            new.used = -tick
            data[key] = new
            entries.midway = False
            entries.lists[tick >> SHIFT].append(new)
        except (AttributeError, IndexError, KeyError):
            if not tick:
                return False
            entries.order.add(new)  # stored, but for its tick there was no list yet
        entries.watch(new)
        entries.forget_lists()
        return True


def fitting(*, weak: bool, ages: bool, calls_back: bool, odd: bool, weighs: bool) -> type[LRUCache[Any, Any]]:
    """Return the class that does what a cache is configured for, and no more."""
    if FREE_THREADED or weak:
        return LRUCache
    if ages:
        return Timed
    if calls_back or odd:
        return Direct
    return Weighed if weighs else Counted
