"""
The entries of a cache, within bounds: what is there, what it counts, and what goes.

Rule 1: each change is a straight line of assignments, with no call, loop or new container between the first and the
    last. Under a GIL neither another thread nor a signal handler comes in between, so no lock is needed. Where there is
    no GIL, the lock makes it so (:class:`LockedEntries`).
Rule 2: the table is an index alone. An entry is there as long as it has a value; the sums count those that are there.
    So whoever is interrupted between dropping an entry and taking it out of the table leaves nothing wrong behind.
Rule 3: a mark stands while a change is under way. Who finds it set counts anew: whatever interrupted a change.
"""

from __future__ import annotations

import sysconfig
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, cast

from memguard.caching._ages import Ages
from memguard.caching._bounds import UNBOUNDED
from memguard.caching._entry import NEVER, Entry, SizedEntry, TimedEntry, is_there
from memguard.caching._keys import OddKey, Table, is_plain, of_hash, original, stored
from memguard.caching._order import PATIENCE, SHIFT, Order, last_use
from memguard.caching._statistics import EvictionReason
from memguard.forking import forget_in_child
from memguard.newest import newest as look_at_newest

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

Gone: TypeAlias = list[tuple[Any, Any, EvictionReason]]
"""Key, what was held, and why it went."""

_SLACK = 1024
"""So many entries that are gone may stand in lists beside as many as are there."""
_TRIES = 10
_EVICTED = frozenset(("size", "entries", "pressure"))


class Coming(NamedTuple):
    """
    What is to be stored.

    Attributes:
        key: Its key, as the program has it.
        held: What is held under it.
        size: Its bytes.
        life: How long it may stay.
        now: The time; no matter where ages do not count.
    """

    key: Any
    held: Any
    size: int
    life: float
    now: float


class Entries:
    """
    Entries within bounds. Readers may look at :attr:`data` at any moment.

    Attributes:
        data: By key, as ``_keys`` stores it. It may have entries that are gone.
        order: In which they go.
        lists: Of *order*, to add to.
        victims: Of *order*, to take from.
        ages: When they are over; None where ages do not count.
        make: Makes an entry of the kind that this cache needs.
        count: How many are there.
        total_bytes: The sum of their sizes.
        ticks: The reads and stores until now.
        renewals: The stores until now that found the key there; the other ticks are hits and keys that came.
        evictions: How many went for want of room.
        removals: How many went otherwise.
        midway: Whether a change is under way; see rule 3.
        odd: Whether there ever was a key whose hash or comparison may be Python.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "_odd",
        "ages",
        "cap_bytes",
        "cap_entries",
        "count",
        "data",
        "evictions",
        "expirations",
        "lists",
        "make",
        "max_bytes",
        "max_entries",
        "midway",
        "misses",
        "odd",
        "order",
        "removals",
        "renewals",
        "ticks",
        "total_bytes",
        "victims",
    )

    def __init__(self, max_entries: int, max_bytes: int, order: Order, ages: Ages | None, *, weighs: bool) -> None:
        self.max_entries = self.cap_entries = max_entries
        self.max_bytes = self.cap_bytes = max_bytes
        self.data: dict[Any, Entry] = {}
        self.order = order
        self.lists, self.victims = order.buckets.lists, order.victims
        self.ages = ages
        self.make: type[Entry] = TimedEntry if ages is not None else SizedEntry if weighs else Entry
        self.count = self.total_bytes = self.ticks = self.renewals = 0
        self.misses = self.evictions = self.expirations = self.removals = 0
        self.midway = self.odd = False
        self._lock = threading.RLock()
        self._odd: Table[Entry] = Table()
        forget_in_child(self)

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()

    @property
    def hits(self) -> int:
        """How many reads found a value."""
        return max(0, self.ticks - self.renewals - self.count - self.evictions - self.removals)

    # ----- what is there

    def there(self, count: int | None = None, *, newest: bool = False) -> list[Entry]:
        """Return so many of those that are there, all by default; in the order in which their keys came."""
        while True:
            held = self.data.values()
            try:
                found = look_at_newest(held, count) if newest else list(islice(held, count))
            except RuntimeError:  # it changed meanwhile
                continue
            return [entry for entry in found if is_there(entry)]

    def in_order(self) -> Iterator[Entry]:
        """Return those that are there, the least recently used first."""
        return iter(sorted(self.there(), key=last_use))

    # ----- changes

    def put(self, coming: Coming, gone: Gone) -> None:
        """
        Hold what comes, used now; first drop what does not fit beside it.

        Args:
            coming: What comes.
            gone: Takes what goes for it.
        """
        if self.midway:
            self.recount()
        fits, done, tries = True, False, 0
        while not done:
            tries += 1
            entry = self.find(coming.key)
            before = None if entry is None else self._use(entry)
            grown, extra = coming.size - (before or 0), before is None
            if self._exceeds(grown, extra):
                # The entry itself is the newest now. If not even that is enough, it goes as soon as it is there.
                fits = self.trim(gone, self.cap_bytes, self.cap_entries, coming.now, grown=grown, extra=extra) > 0
            fits = fits and tries < _TRIES  # of threads that take each other's room none would ever be done
            if fits and self._exceeds(grown, extra):
                continue
            if entry is None or before is None:
                done = self._insert(coming, fits=fits)
            else:
                done = self._renew(entry, coming, gone, fits=fits)
        if not fits:
            self.trim(gone, self.cap_bytes, self.cap_entries, coming.now)

    def _use(self, entry: Entry) -> int | None:
        """Mark *entry* as used; return its size, None if it is gone."""
        if not is_there(entry):
            return None
        self.ticks = entry.used = self.ticks + 1
        self.renewals += 1
        return entry.size

    def _exceeds(self, grown: int, extra: bool) -> bool:
        """Tell whether so many bytes more, or one entry more, are too many."""
        return self.total_bytes + grown > self.cap_bytes or self.count + extra > self.cap_entries

    def _renew(self, there: Entry, coming: Coming, gone: Gone, *, fits: bool) -> bool:
        """Hold what comes in the place of what is there; False if that is gone, or another was stored meanwhile."""
        make, entry = self.make, cast("Any", there)
        if type(there) is not make:  # from before sizes or ages counted
            self.drop(there, "replaced", gone)
            return False
        _, held, size, life, now = coming
        sized, timed, expires = make is not Entry, make is TimedEntry, now + life
        try:
            before = entry.value
            if fits and self.total_bytes + size - entry.size > self.cap_bytes:
                return False
            self.midway = True
            if timed:
                entry.life = life
                entry.expires = expires
            if sized:
                self.total_bytes += size - entry.size
                entry.size = size
            entry.value = held
            self.ticks = entry.used = self.ticks + 1
            self.renewals += 1
            self.midway = False
        except AttributeError:
            return False
        if before is not held:
            gone.append((original(entry.key), before, "replaced"))
        if timed:
            self.watch(entry)
        return True

    def _made(self, coming: Coming) -> Any:
        """Return an entry for what comes, without its value."""
        entry: Any = self.make()
        entry.key = stored(coming.key)
        if self.make is not Entry:
            entry.size = coming.size
        if self.make is TimedEntry:
            entry.life, entry.expires, entry.due = coming.life, coming.now + coming.life, NEVER
        return entry

    def _insert(self, coming: Coming, *, fits: bool) -> bool:
        """Hold what comes under a key that is not there; False if it is by now, or others took the room."""
        entry, data, held, size = self._made(coming), self.data, coming.held, coming.size
        key = entry.key
        if type(key) is OddKey:
            self.odd = True
        elif key in data:
            try:
                data[key].value  # noqa: B018 - it raises if that entry is gone
                return False
            except AttributeError:
                pass
        if fits and (self.total_bytes + size > self.cap_bytes or self.count >= self.cap_entries):
            return False
        self.midway = True
        entry.value = held
        self.ticks = tick = self.ticks + 1
        entry.used = -tick
        self.count += 1
        self.total_bytes += size
        data[key] = entry
        self.midway = False
        try:
            self.lists[tick >> SHIFT].append(entry)
        except KeyError:
            self.order.add(entry)
        self.watch(entry)
        return not self.odd or self._is_first(entry)

    def _is_first(self, entry: Entry) -> bool:
        """Have *entry* found by its key, too, if that is odd; tell whether it is, and drop it if another was first."""
        key = entry.key
        if type(key) is OddKey:
            self._odd.add(key.key, key.hashed, entry)
        first = self.find(original(key))
        if first is entry or first is None:
            return True
        self.drop(entry, "replaced", [])
        return False

    # ----- look-ups

    def find(self, key: Any) -> Entry | None:
        """
        Return the entry of *key*, which may be gone.

        Raises:
            TypeError: *key* has no hash.
        """
        if is_plain(key):
            entry = self.data.get(key)
            if not self.odd or (entry is not None and is_there(entry)):
                return entry
        hashed, data = hash(key), self.data
        for other in of_hash(data, hashed):
            if type(other) is not OddKey and (other is key or other == key):
                entry = data.get(other)
                if entry is not None and is_there(entry):
                    return entry
        return next((entry for entry in self._odd.matching(key, hashed) if is_there(entry)), None)

    # ----- going

    def drop(self, entry: Entry, reason: EvictionReason, gone: Gone) -> bool:
        """Drop *entry*; False if it was gone."""
        evicted, expired = reason in _EVICTED, reason == "expired"
        try:
            value = entry.value
            self.midway = True
            del entry.value
            self.count -= 1
            self.total_bytes -= entry.size
            if evicted:
                self.evictions += 1
            else:
                self.removals += 1
                self.expirations += expired
            self.midway = False
        except AttributeError:
            return False
        gone.append((original(entry.key), value, reason))
        self._unmap(entry)
        return True

    def _unmap(self, entry: Entry) -> None:
        """Take *entry*, which is gone, out of the table and, now and then, out of the lists."""
        key = entry.key
        self._forget(key, entry)
        if type(key) is OddKey:
            self._odd.discard(key.hashed, entry)
        self.order.dropped += 1
        self.forget_lists()

    def forget_lists(self) -> None:
        """Take those that are gone out of the lists, now and then, part by part."""
        if self.order.dropped > self.count + _SLACK:
            self._sweep(self.order)
        if self.ages is not None:
            self.ages.dropped += 1
            if self.ages.dropped > self.count + _SLACK:
                self._sweep(self.ages)

    def _sweep(self, lists: Order | Ages) -> None:
        rest: list[object] = []
        with self._lock:
            lists.sweep(rest)

    def trim(
        self,
        gone: Gone,
        cap_bytes: int,
        cap_entries: int,
        now: float,
        most: int = UNBOUNDED,
        *,
        grown: int = 0,
        extra: bool = False,
    ) -> int:
        """
        Drop entries in their order, *most* at a time, until no more than the caps are left.

        Args:
            gone: Takes what goes.
            cap_bytes: So many bytes may stay.
            cap_entries: So many entries may stay.
            now: The time; no matter where ages do not count.
            most: So many may go.
            grown: So many bytes are to come.
            extra: Whether an entry is to come.

        Returns:
            How many went.
        """
        dropped = 0
        while dropped < most:
            total, count = self.total_bytes + grown, self.count + extra
            if (total <= cap_bytes and count <= cap_entries) or (entry := self.find_oldest()) is None:
                break
            if self.ages is not None and entry.expires <= now:
                reason: EvictionReason = "expired"
            elif total > cap_bytes:
                reason = "size" if total > self.max_bytes else "pressure"
            else:
                reason = "entries" if count > self.max_entries else "pressure"
            dropped += self.drop(entry, reason, gone)
            victims = self.victims
            if victims and victims[-1] is entry:
                del victims[-1]
        return dropped

    def pop_oldest(self, gone: Gone) -> bool:
        """Drop the entry that goes next; False if there is none."""
        while True:
            entry = self.find_oldest()
            if entry is None or self.drop(entry, "deleted", gone):
                return entry is not None

    def find_oldest(self) -> Entry | None:
        """Return the entry that goes next."""
        passed: list[Entry] = []
        rest: list[object] = []
        recounted = False
        while True:
            if self.victims:
                found = self.order.last_victim(passed, rest)
                if found is None and len(passed) > PATIENCE:
                    found = self.order.least(passed)
                if found is not None:
                    return found
            elif not self._find_victims(passed, rest):
                if recounted or not self.count:
                    return None
                self.recount()  # there are entries, and the order does not know them
                recounted = True

    def _find_victims(self, passed: list[Entry], rest: list[object]) -> bool:
        with self._lock:
            return bool(self.victims) or self.order.find_victims(passed, rest)

    # ----- age

    def begin_expiring(self, ages: Ages) -> None:
        """Keep ages from now on; what is there never expires."""
        if self.ages is None:
            self.ages = ages
            self.make = TimedEntry

    def watch(self, entry: Entry) -> None:
        """See to the end of *entry*, which is set anew."""
        ages = self.ages
        if ages is None or not isinstance(entry, TimedEntry) or entry.expires >= entry.due or ages.file_ahead(entry):
            return
        with self._lock:
            ages.watch(entry)

    def drop_over(self, now: float, most: int, gone: Gone) -> int:
        """Drop entries that are over by *now*, *most* at a time; return how many went."""
        ages, dropped = self.ages, 0
        while ages is not None and dropped < most and ages.soonest <= now:
            rest: list[object] = []
            with self._lock:
                entry = ages.first_over(now, rest)
            if entry is None:
                break
            dropped += self.drop(entry, "expired", gone)
        return dropped

    # ----- sums

    def begin_weighing(self) -> None:
        """Count sizes from now on; what is there counts nothing until it is weighed."""
        if self.make is Entry:
            self.make = SizedEntry

    def weigh(self, entry: Entry, size: int) -> None:
        """Count *size* for *entry*, which is from before sizes counted."""
        if type(entry) is self.make:
            return
        fresh: Any = self.make()
        fresh.key, fresh.used, fresh.size = entry.key, entry.used, size
        if isinstance(fresh, TimedEntry):
            fresh.life, fresh.expires, fresh.due = NEVER, entry.expires, NEVER
        try:
            value = entry.value
            self.midway = True
            del entry.value
            fresh.value = value
            self.total_bytes += size
            self.renewals += 1
            self.ticks += 1
            self.data[entry.key] = fresh
            self.midway = False
        except AttributeError:
            return
        self.order.add(fresh)

    def recount(self) -> None:
        """Make up sums, order and ages anew from what is there, after a change that was interrupted."""
        self.midway = False
        for key, entry in self._pairs():
            if not is_there(entry):
                self._forget(key, entry)
        for attempt in range(_TRIES):
            version = self.ticks + self.removals + self.evictions
            there = self.there()
            count, total = len(there), sum(entry.size for entry in there)
            last = attempt == _TRIES - 1
            if last or self.ticks + self.removals + self.evictions == version:
                self.count = count
                self.total_bytes = total
                break
        with self._lock:
            self.order.rebuild(there)
            if self.ages is not None:
                self.ages.rebuild(there)

    def _pairs(self) -> list[tuple[Any, Entry]]:
        while True:
            try:
                return list(self.data.items())
            except RuntimeError:  # it changed meanwhile
                continue

    def _forget(self, key: Any, entry: Entry) -> None:
        try:
            if self.data[key] is entry:
                del self.data[key]
        except KeyError:
            pass


class LockedEntries(Entries):
    """Where there is no GIL: one change at a time."""

    __slots__ = ()

    def put(self, coming: Coming, gone: Gone) -> None:
        """Hold what comes, used now."""
        with self._lock:
            super().put(coming, gone)

    def drop(self, entry: Entry, reason: EvictionReason, gone: Gone) -> bool:
        """Drop *entry*; False if it was gone."""
        with self._lock:
            return super().drop(entry, reason, gone)

    def weigh(self, entry: Entry, size: int) -> None:
        """Count *size* for *entry*, which is from before sizes counted."""
        with self._lock:
            super().weigh(entry, size)
