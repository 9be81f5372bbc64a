"""
A cache bounded by entries and by bytes, as a mapping that is safe in threads.

Rule 1: nothing of the program's runs while a change is under way: values are weighed before, callbacks and destructors
    run after. What an entry is, how it comes and how it goes is in ``_entry`` and ``_entries``.
Rule 2: a read is a look into a dict and a mark. No key, whatever its hash and comparison do, can break that.
"""

from __future__ import annotations

import copy
import threading
import time
import weakref
from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, NamedTuple, TypeAlias, TypeVar

from memguard.caching._ages import Ages
from memguard.caching._bounds import (
    UNBOUNDED,
    bytes_of,
    callable_of,
    entries_of,
    policy_of,
    seconds_of,
    told,
    weight_of,
)
from memguard.caching._entries import FREE_THREADED, Coming, Entries, Gone, LockedEntries
from memguard.caching._entry import NEVER, Entry, TimedEntry
from memguard.caching._keys import original
from memguard.caching._order import Policy, order_of
from memguard.caching._pressure import FIRST_BYTES, LOOK_BYTES, GivesWay
from memguard.caching._statistics import CacheStatistics, EvictionReason
from memguard.caching._views import MISSING, Items, Missing, Values
from memguard.caching._weak import WeakValues
from memguard.relief import shrinkables
from memguard.signals import contained
from memguard.sizing import deep_sizeof
from memguard.units import ByteSize

K = TypeVar("K")
V = TypeVar("V")
OnEvict: TypeAlias = Callable[[Any, Any, EvictionReason], object]

_ENTRY_BYTES = 216
"""What the cache itself takes for an entry: its place in the order, in the table and in that of the sizes."""
_TIMED_ENTRY_BYTES = 320
"""And with a time to live."""
_CHUNK = 1000
_EXPIRED_A_STORE = 100
"""So many entries that are over go with one store at most."""
_DEEPEST = 3
"""A callback may store, and be called for what that drops; what it stores in the third call is not kept."""


class _Telling:
    """
    Calls of a callback that are under way, so many inside of one another.

    Known weakly: those that an exception ended, wherever it came in between, are not counted any more.
    """

    __slots__ = ("__weakref__", "depth")

    def __init__(self, depth: int) -> None:
        self.depth = depth


def _told_nobody() -> None:
    return None


class _Content(NamedTuple):
    """An entry of a cache that is copied."""

    key: Any
    value: Any
    size: int
    life: float
    left: float


class LRUCache(GivesWay, MutableMapping[K, V]):
    """
    A cache that holds at most so many entries and so many bytes. Safe in threads.

    ``in``, :meth:`peek` and iteration change neither order nor age. Iteration goes from the least to the most recently
    used entry.

    Args:
        max_entries: So many entries at most.
        max_bytes: So many bytes at most. One of the two is needed.
        sizeof: Returns the bytes of a value. None estimates value and key (:func:`~memguard.deep_sizeof`) and adds what
            the cache itself takes for an entry, so that the bound means real memory.
        ttl: Seconds after which an entry is no longer found.
        name: Stands in the repr and in log records.
        update_age_on_get: Whether being found makes an entry young again.
        max_entry_bytes: A larger value is not stored: no error, but counted. So is one larger than *max_bytes*.
        on_evict: Called with key, value and reason for each entry that goes, in the thread that made it go and outside
            of the lock. One that raises is logged.
        shrink_under_pressure: Whether to give way when memory is short.
        weak_values: Whether to hold values weakly: they go when nobody else holds them.
        timer: Seconds, monotonic.
        policy: What goes first: ``"lru"``, the least recently used; or ``"sieve"``, what was not used since it was last
            looked at, which finds more where some keys are asked for far more often than others.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: There is no bound, or one that cannot be meant.
    """

    __slots__ = (
        "__weakref__",
        "_data",
        "_max_entry_bytes",
        "_name",
        "_now",
        "_on_evict",
        "_own_max_entry_bytes",
        "_policy",
        "_rejected",
        "_sizeof",
        "_sliding",
        "_telling",
        "_ttl",
        "_weak",
        "_weighed",
    )

    def __init__(
        self,
        max_entries: int | None = None,
        *,
        max_bytes: ByteSize | None = None,
        sizeof: Callable[[V], int] | None = None,
        ttl: float | None = None,
        name: str | None = None,
        update_age_on_get: bool = False,
        max_entry_bytes: ByteSize | None = None,
        on_evict: OnEvict | None = None,
        shrink_under_pressure: bool = True,
        weak_values: bool = False,
        timer: Callable[[], float] = time.monotonic,
        policy: Policy = "lru",
    ) -> None:
        if max_entries is None and max_bytes is None:
            raise ValueError("a cache without a bound is a leak: give max_entries, max_bytes or both")
        self._now = callable_of(timer, "timer") or time.monotonic
        self._ttl = seconds_of(ttl)
        nbytes = bytes_of(max_bytes, "max_bytes")
        self._own_max_entry_bytes = bytes_of(max_entry_bytes, "max_entry_bytes")
        self._max_entry_bytes = min(self._own_max_entry_bytes, nbytes)
        self._sizeof = callable_of(sizeof, "sizeof")
        self._weighed = nbytes != UNBOUNDED or sizeof is not None or max_entry_bytes is not None
        self._policy = policy_of(policy)
        self._entries: Entries = (LockedEntries if FREE_THREADED else Entries)(
            entries_of(max_entries),
            nbytes,
            order_of(self._policy),
            None if ttl is None else Ages(self._ttl),
            weighs=self._weighed,
        )
        self._data = self._entries.data
        self._name = name
        self._sliding = bool(update_age_on_get)
        self._on_evict = callable_of(on_evict, "on_evict")
        self._telling: dict[int, weakref.ref[_Telling]] = {}  # by thread
        self._shrinks = bool(shrink_under_pressure)
        self._weak = WeakValues() if weak_values else None
        self._look_bytes = LOOK_BYTES
        self._each_bytes = FIRST_BYTES
        self._useful = 0.0
        self._rejected = self._hits_before = self._unlooked = 0
        shrinkables.add(self)
        if type(self) is LRUCache:
            self.__class__ = self._fitting()

    def _fitting(self) -> type[LRUCache[Any, Any]]:
        """Return the subclass that does what this cache is configured for, and no more."""
        from memguard.caching import _direct  # noqa: PLC0415 - it builds on this one

        return _direct.fitting(
            weak=self._weak is not None,
            ages=self._entries.ages is not None,
            calls_back=self._on_evict is not None,
            odd=self._entries.odd,
            weighs=self._weighed,
        )

    # ----- reading. The subclasses of ``_direct`` do the same with less.

    def get(self, key: K, default: Any = None, /) -> Any:
        """Return the value of *key*, used now; *default* where there is none."""
        entries = self._entries
        entry = entries.find(key)
        if entry is not None and self._is_over(entry):
            gone: Gone = []
            entries.drop(entry, "expired", gone)
            self._tell(gone)
            entry = None
        value = MISSING if entry is None else self._value(getattr(entry, "value", MISSING))
        if entry is None or value is MISSING:
            entries.misses += 1
            return default
        entries.ticks = entry.used = entries.ticks + 1
        if self._sliding:
            self._make_young(entry)
        return value

    def __getitem__(self, key: K, /) -> V:
        """
        Return the value of *key*, used now.

        Raises:
            KeyError: There is none.
        """
        value: Any = self.get(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        found: V = value
        return found

    def _value(self, held: Any) -> Any:
        """Return what *held* stands for, or MISSING where a weakly held value is gone."""
        if self._weak is None or held is MISSING:
            return held
        value = held()
        return MISSING if value is None else value

    def _time(self) -> float:
        """Return the time, where ages count."""
        return 0.0 if self._entries.ages is None else self._now()

    def _is_over(self, entry: Entry) -> bool:
        return self._entries.ages is not None and self._now() >= entry.expires

    def _make_young(self, entry: Entry) -> None:
        """Let *entry* live as long again as it was given."""
        if isinstance(entry, TimedEntry) and entry.life != NEVER:
            entry.expires = self._now() + entry.life

    def _find(self, key: Any) -> Entry | None:
        """Return the entry of *key*, unless it is gone or over."""
        entry = self._entries.find(key)
        return None if entry is None or self._is_over(entry) else entry

    def peek(self, key: K, default: Any = None) -> Any:
        """Return the value of *key* without using it; *default* where there is none."""
        value = self._value(getattr(self._find(key), "value", MISSING))
        return default if value is MISSING else value

    def __contains__(self, key: Any) -> bool:
        """Tell whether *key* would be found; neither age nor order change."""
        return self.peek(key, MISSING) is not MISSING

    def __len__(self) -> int:
        """Return how many entries there are."""
        self._tidy()
        return self._entries.count

    def __iter__(self) -> Iterator[K]:
        """Return the keys as they are now, the least recently used first."""
        self._tidy()
        entries = self._entries.in_order()
        return (original(entry.key) for entry in entries if not self._is_over(entry))

    def items(self) -> ItemsView[K, V]:
        """Return a view of the entries; to look at them is not to use them."""
        return Items(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values; to look at them is not to use them."""
        return Values(self)

    # ----- writing

    def __setitem__(self, key: K, value: V, /) -> None:
        """Store *value*, used now."""
        self._store(key, value, self._ttl)

    def set(self, key: K, value: V, *, ttl: float | None = None) -> None:
        """
        Store *value*, used now, with a time to live of its own if *ttl* is given.

        Raises:
            TypeError, ValueError: *ttl* is no number of seconds above 0; or ``sizeof`` returned no size.
        """
        self._store(key, value, self._ttl if ttl is None else seconds_of(ttl))

    def _store(self, key: K, value: V, ttl: float | None) -> None:
        size = self._weigh(key, value) if self._weighed else 0
        if ttl is not None and self._entries.ages is None:
            self._begin_expiring()
        self._put(key, value, size, ttl)

    def _put(self, key: K, value: V, size: int, ttl: float | None = None) -> None:
        held: Any = value if self._weak is None else self._weak.hold(key, value)
        entries = self._entries
        gone: Gone = []
        now = self._time()
        self._drop_over(now, _EXPIRED_A_STORE, gone)
        if size <= self._max_entry_bytes and self._depth() < _DEEPEST:
            entries.put(Coming(key, held, size, NEVER if ttl is None else ttl, now), gone)
        else:
            self._reject(key, gone)
        if entries.odd:
            self._stay_general()
        self._wrote(size, gone)

    def _stay_general(self) -> None:
        """Store in the way that suits any key from now on."""

    def _wrote(self, size: int, gone: Gone) -> None:
        """Do what follows a write."""
        if gone and self._on_evict is not None:
            self._tell(gone)
        self._unlooked += size or self._each_bytes
        if self._unlooked >= LOOK_BYTES or self._entries.total_bytes > self._look_bytes:
            self._look()

    def _reject(self, key: K, gone: Gone) -> None:
        """Do not store what is too large; nor keep what it was to replace."""
        self._rejected += 1
        entry = self._entries.find(key)
        if entry is not None:
            self._entries.drop(entry, "size", gone)

    def _weigh(self, key: Any, value: Any) -> int:
        if self._sizeof is not None:
            size = self._sizeof(value)
            return size if type(size) is int and size >= 0 else weight_of(size, value)
        own = _ENTRY_BYTES if self._entries.ages is None else _ENTRY_BYTES + _TIMED_ENTRY_BYTES
        return deep_sizeof(value) + deep_sizeof(key) + own

    def __delitem__(self, key: K, /) -> None:
        """
        Remove *key*.

        Raises:
            KeyError: It is not there.
        """
        self.pop(key)

    def pop(self, key: K, /, default: Any = MISSING) -> Any:
        """
        Remove *key* and return its value; *default* where there is none.

        Raises:
            KeyError: There is none, and no *default*.
        """
        gone: Gone = []
        entry = self._entries.find(key)
        over = entry is not None and self._is_over(entry)
        if entry is not None:
            self._entries.drop(entry, "expired" if over else "deleted", gone)
        value = self._value(gone[0][1]) if gone and not over else MISSING
        self._tell(gone)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """
        Remove the entry that would go next and return it: the least recently used one.

        Raises:
            KeyError: The cache is empty.
        """
        while True:
            self._tidy()
            gone: Gone = []
            if not self._entries.pop_oldest(gone):
                raise KeyError(f"{self!r} is empty")
            key, held, _ = gone[0]
            value = self._value(held)
            self._tell(gone)
            if value is not MISSING:
                return key, value

    def setdefault(self, key: K, default: Any = None, /) -> Any:
        """Return the value of *key*, used now; store *default* first where there is none."""
        value = self.get(key, MISSING)
        if value is not MISSING:
            return value
        self._store(key, default, self._ttl)
        return default

    def clear(self) -> None:
        """Remove all entries. Counts of hits and misses stay."""
        gone: Gone = []
        for entry in self._entries.there():
            self._entries.drop(entry, "deleted", gone)
        self._tell(gone)

    # ----- age

    def expire(self) -> int:
        """Drop what has expired; return how many entries that were. Happens by itself now and then while writing."""
        count = 0
        while True:
            gone: Gone = []
            dropped = self._drop_over(self._time(), _CHUNK, gone)
            self._tell(gone)
            count += dropped
            if dropped < _CHUNK:
                return count

    def _tidy(self) -> None:
        """Drop what has expired or died, so that counts are true."""
        if self._entries.midway:
            self._entries.recount()
        self.expire()

    def _drop_over(self, now: float, most: int, gone: Gone) -> int:
        """Drop what is over or dead; return how many were over."""
        entries = self._entries
        if self._weak is not None:
            self._weak.bury(entries)
        return entries.drop_over(now, most, gone)

    def _begin_expiring(self) -> None:
        """Keep ages from now on. Readers that are at it go by none, which was true when they began."""
        self._entries.begin_expiring(Ages(self._ttl))
        self._respecialise()

    def _respecialise(self) -> None:
        """Be of the subclass that fits by now."""

    # ----- size

    def resize(
        self, max_entries: int | Missing | None = MISSING, max_bytes: ByteSize | Missing | None = MISSING
    ) -> None:
        """
        Change the bounds; None takes one away, what is not given stays. Entries that no longer fit go at once.

        Raises:
            ValueError: No bound would be left, or it cannot be meant.
        """
        inside = self._entries
        entries = inside.max_entries if isinstance(max_entries, Missing) else entries_of(max_entries)
        nbytes = inside.max_bytes if isinstance(max_bytes, Missing) else bytes_of(max_bytes, "max_bytes")
        if entries == UNBOUNDED and nbytes == UNBOUNDED:
            raise ValueError("a cache without a bound is a leak: keep max_entries, max_bytes or both")
        if nbytes != UNBOUNDED and not self._weighed:
            self._begin_weighing()
        self._max_entry_bytes = min(self._own_max_entry_bytes, nbytes)
        inside.max_entries = inside.cap_entries = entries
        inside.max_bytes = inside.cap_bytes = nbytes
        self._trim(nbytes, entries)

    def _begin_weighing(self) -> None:
        self._weighed = True
        self._entries.begin_weighing()
        self._respecialise()
        for entry in self._entries.there():
            value = self._value(getattr(entry, "value", MISSING))
            size = 0 if value is MISSING else self._weigh(original(entry.key), value)
            self._entries.weigh(entry, size)

    @property
    def _weighs(self) -> bool:
        return self._weighed

    # ----- copies

    def _options(self) -> dict[str, Any]:
        return {
            "max_entries": self.max_entries,
            "max_bytes": self.max_bytes,
            "sizeof": self._sizeof,
            "ttl": self._ttl,
            "name": self._name,
            "update_age_on_get": self._sliding,
            "max_entry_bytes": told(self._own_max_entry_bytes, UNBOUNDED),
            "on_evict": self._on_evict,
            "shrink_under_pressure": self._shrinks,
            "weak_values": self._weak is not None,
            "timer": self._now,
            "policy": self._policy,
        }

    def _contents(self) -> list[_Content]:
        """Return what it holds, the least recently used first, with the seconds that are left of each life."""
        now = self._time()
        pairs = [(entry, self._value(getattr(entry, "value", MISSING))) for entry in self._entries.in_order()]
        return [
            _Content(original(entry.key), value, entry.size, getattr(entry, "life", NEVER), entry.expires - now)
            for entry, value in pairs
            if value is not MISSING and entry.expires > now
        ]

    def __copy__(self) -> LRUCache[K, V]:
        """Return a cache with the same entries, which goes its own way from now on."""
        return _restored(self._public, self._options(), self._contents(), getattr(self, "__dict__", {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> LRUCache[K, V]:
        """Return a cache with copies of the entries, which goes its own way from now on."""
        self._check_strong()
        own = copy.deepcopy(getattr(self, "__dict__", {}), memo)
        return _restored(self._public, self._options(), copy.deepcopy(self._contents(), memo), own)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes it again elsewhere, with what is left of each life."""
        self._check_strong()
        return _restored, (self._public, self._options(), self._contents(), getattr(self, "__dict__", {}))

    def _restore(self, key: Any, value: Any, size: int, life: float, left: float) -> None:
        """Hold what another cache held, as old as it is."""
        if life != NEVER and self._entries.ages is None:
            self._begin_expiring()
        held = value if self._weak is None else self._weak.hold(key, value)
        now = self._time() if life == NEVER else self._time() + left - life
        self._entries.put(Coming(key, held, size, life, now), [])
        if self._entries.odd:
            self._stay_general()

    def _check_strong(self) -> None:
        if self._weak is not None:
            raise TypeError(
                "a cache with weak_values=True is not pickled or copied deeply: nobody would hold the copies"
            )

    @property
    def _public(self) -> type[LRUCache[Any, Any]]:
        return type(self)

    # ----- telling

    def _depth(self) -> int:
        """Return how many callbacks this thread is inside of."""
        telling = self._telling.get(threading.get_ident(), _told_nobody)()
        return 0 if telling is None else telling.depth

    def _tell(self, gone: Gone) -> None:
        """Tell the callback what went."""
        if self._on_evict is None or not gone:
            return
        thread, telling = threading.get_ident(), _Telling(self._depth() + 1)
        outer, self._telling[thread] = self._telling.get(thread), weakref.ref(telling)
        try:
            for key, held, reason in gone:
                value = self._value(held)
                if value is not MISSING:
                    contained(self._on_evict, key, value, reason, what=f"{self!r}: on_evict")
        finally:
            if outer is None:
                self._telling.pop(thread, None)
            else:
                self._telling[thread] = outer

    def statistics(self) -> CacheStatistics:
        """Return the counts since the cache was made."""
        total, inside = self.total_bytes, self._entries
        return CacheStatistics(
            hits=inside.hits,
            misses=inside.misses,
            evictions=inside.evictions,
            expirations=inside.expirations,
            rejected=self._rejected,
            entries=len(self),
            total_bytes=total,
            max_entries=self.max_entries,
            max_bytes=self.max_bytes,
        )

    @property
    def total_bytes(self) -> int:
        """Bytes held: the sum of ``sizeof`` where given, else keys, values and overhead; from a sample if unweighed."""
        self._tidy()
        return self.held_bytes()

    @property
    def max_entries(self) -> int | None:
        """The bound on entries; None for none."""
        return told(self._entries.max_entries, UNBOUNDED)

    @property
    def max_bytes(self) -> int | None:
        """The bound on bytes; None for none."""
        return told(self._entries.max_bytes, UNBOUNDED)

    @property
    def name(self) -> str | None:
        """Its name, if it has one."""
        return self._name

    @property
    def policy(self) -> Policy:
        """What goes first: ``"lru"`` or ``"sieve"``."""
        return self._policy

    # ----- as cachetools calls it

    @property
    def maxsize(self) -> int:
        """The bound on bytes if there is one, else on entries."""
        inside = self._entries
        return inside.max_entries if inside.max_bytes == UNBOUNDED else inside.max_bytes

    @property
    def currsize(self) -> int:
        """What :attr:`maxsize` bounds, now."""
        return len(self) if self._entries.max_bytes == UNBOUNDED else self.total_bytes

    def getsizeof(self, value: V) -> int:
        """Return what *value* counts of :attr:`maxsize`, without its key."""
        if self._entries.max_bytes == UNBOUNDED and self._sizeof is None:
            return 1
        return deep_sizeof(value) if self._sizeof is None else weight_of(self._sizeof(value), value)

    def __repr__(self) -> str:
        bounds = [] if self.max_entries is None else [f"{self.max_entries} entries"]
        bounds += [] if self.max_bytes is None else [f"{self.max_bytes} bytes"]
        name = "" if self._name is None else f"{self._name!r}, "
        return f"<LRUCache {name}{self._entries.count} entries of {' or '.join(bounds)}>"


def _restored(
    kind: type[LRUCache[Any, Any]], options: dict[str, Any], contents: list[_Content], own: dict[str, Any]
) -> LRUCache[Any, Any]:
    """Return a cache of *kind* with what another held; *own* is what a subclass added to it."""
    cache = kind.__new__(kind)
    LRUCache.__init__(cache, **options)
    for each in contents:
        cache._restore(*each)
    if own:
        cache.__dict__.update(own)
    return cache
