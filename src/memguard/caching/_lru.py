"""
A cache bounded by entries and by bytes: the least recently used entry goes first.

Rule 1: under the lock nothing of others runs but the keys' own hash and comparison. Values are weighed before it,
    callbacks and destructors run after it.
Rule 2: with a GIL, readers take no lock. Each of their steps is atomic, and an entry that goes meanwhile is a miss.
    That ends with the first key whose hash or comparison may be Python: from then on everybody takes the lock.
Rule 3: a writer who finds the lock taken yields before it blocks: threads that block on a lock under a GIL form a
    convoy, which costs five times as much.
"""

from __future__ import annotations

import os
import sysconfig
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, TypeAlias, TypeVar

from memguard.caching._bounds import UNBOUNDED, bytes_of, callable_of, entries_of, seconds_of, told, weight_of
from memguard.caching._entries import Entries, Gone, pairs_of
from memguard.caching._statistics import CacheStatistics, EvictionReason
from memguard.caching._views import MISSING, Items, Missing, Values
from memguard.errors import MemoryCircuitBreakerError
from memguard.logs import log
from memguard.relief import shrinkables
from memguard.sizing import deep_sizeof
from memguard.units import ByteSize, parse_bytes
from memguard.values import Gate, Level, gate_of

K = TypeVar("K")
V = TypeVar("V")
OnEvict: TypeAlias = Callable[[Any, Any, EvictionReason], object]

_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
_ENTRY_BYTES = 272
"""What the cache itself takes for an entry: its place in the order, in the table and in that of the sizes."""
_TIMED_ENTRY_BYTES = 112
"""And with a time to live."""
_ATOMIC_KEYS = frozenset((str, int, bytes, float, bool, type(None), object))
"""
Their hash and comparison are C, as are those of tuples of them. Written in Python, these let another thread in between
the steps of one operation of the OrderedDict, which then goes by a table that is gone: the process crashes.
"""
_CHUNK = 1000
"""Entries that are dropped in one go: two milliseconds at most, in which others wait for the lock."""
_YIELDS = 50
_LOOK_BYTES = 1024 * 1024
"""How much is stored before the cache asks how tight memory is."""
_FIRST_BYTES = 64 * 1024
_LEAST_BYTES = 1024
"""What an entry counts there, in a cache that weighs none: at first, and at least."""
_GLANCE = 5
_GLANCE_OBJECTS = 200
_TABLE_BYTES = 300
"""What an entry may need at once when the tables grow; they are made anew at times even if no entries are added."""
_SAMPLE = 20
_LONGEST_WAIT_SECONDS = 0.5
"""A callback of the one that relieves may be waited for in turn; so not for ever."""
_relieving = threading.RLock()


class LRUCache(MutableMapping[K, V]):
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

    Raises:
        TypeError: An argument is of another kind.
        ValueError: There is no bound, or one that cannot be meant.
    """

    __slots__ = (
        "__weakref__",
        "_acquire",
        "_data",
        "_dead",
        "_each_bytes",
        "_entries",
        "_hits",
        "_hits_before",
        "_lock",
        "_look_bytes",
        "_max_entry_bytes",
        "_misses",
        "_name",
        "_now",
        "_on_evict",
        "_rejected",
        "_release",
        "_shrinks",
        "_sizeof",
        "_sliding",
        "_touch",
        "_ttl",
        "_unlooked",
        "_useful",
        "_weak",
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
    ) -> None:
        if max_entries is None and max_bytes is None:
            raise ValueError("a cache without a bound is a leak: give max_entries, max_bytes or both")
        self._now = callable_of(timer, "timer") or time.monotonic
        self._ttl = seconds_of(ttl)
        nbytes = bytes_of(max_bytes, "max_bytes")
        self._entries = Entries(entries_of(max_entries), nbytes, self._ttl, self._now)
        self._data: OrderedDict[Any, Any] = self._entries.data
        self._touch = self._entries.touch
        self._max_entry_bytes = min(bytes_of(max_entry_bytes, "max_entry_bytes"), nbytes)
        self._sizeof = callable_of(sizeof, "sizeof")
        if sizeof is not None or max_entry_bytes is not None:
            self._entries.sizes = {}
        self._name = name
        self._sliding = bool(update_age_on_get)
        self._on_evict = callable_of(on_evict, "on_evict")
        self._shrinks = bool(shrink_under_pressure)
        self._weak = bool(weak_values)
        self._dead: deque[tuple[K, object]] = deque()  # of weakly held values
        self._renew_lock()
        self._look_bytes = _LOOK_BYTES
        self._each_bytes = _FIRST_BYTES
        self._useful = 0.0
        self._hits = self._misses = self._rejected = self._hits_before = self._unlooked = 0
        shrinkables.add(self)
        if type(self) is LRUCache and not _FREE_THREADED and not weak_values:
            self.__class__ = self._fitting()
        self._entries.direct = isinstance(self, _Untimed)

    def _fitting(self) -> type[LRUCache[Any, Any]]:
        """Return the subclass that does what this cache is configured for, and no more."""
        if self._entries.expires is not None:
            return _Timed
        if self._on_evict is not None:
            return _Untimed
        return _Counted if self._entries.sizes is None else _Weighed

    # ----- reading. The subclasses below do the same without the lock.

    def get(self, key: K, default: Any = None, /) -> Any:
        """Return the value of *key*, used now; *default* where there is none."""
        entries, expired = self._entries, False
        with self._lock:
            value = self._value(entries.data.get(key, MISSING))
            if value is not MISSING and entries.expires is not None:
                now = self._now()
                expired = now >= entries.expires.setdefault(key, float("inf"))
                if not expired and self._sliding:
                    entries.grow_young(key, now)
            if value is not MISSING and not expired:
                entries.touch(key)
                self._hits += 1
                return value
            self._misses += 1
        if expired:
            self._drop_expired([key])
        return default

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
        if not self._weak or held is MISSING:
            return held
        value = held()
        return MISSING if value is None else value

    def peek(self, key: K, default: Any = None) -> Any:
        """Return the value of *key* without using it; *default* where there is none."""
        value = self._value(self._entries.data.get(key, MISSING))
        return default if value is MISSING or self._entries.is_expired(key) else value

    def __contains__(self, key: Any) -> bool:
        """Tell whether *key* would be found; neither age nor order change."""
        return self.peek(key, MISSING) is not MISSING

    def __len__(self) -> int:
        """Return how many entries there are."""
        self._sweep()
        return len(self._entries.data)

    def __iter__(self) -> Iterator[K]:
        """Return the keys as they are now, the least recently used first."""
        self._sweep()
        with self._lock:
            keys: list[Any] = list(self._entries.data)
        return (key for key in keys if not self._entries.is_expired(key))

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
        held: Any = self._reference(key, value) if self._weak else value
        entries = self._entries
        size = 0 if entries.sizes is None else self._weigh(key, value)
        if type(key) not in _ATOMIC_KEYS:
            self._check_key(key)
        if ttl is not None and entries.expires is None:
            self._begin_expiring()
        gone: Gone = []
        if not self._acquire(False):
            self._wait_for_turn()
        try:
            if self._dead:
                self._bury(gone)
            if size <= self._max_entry_bytes:
                entries.put(key, held, size, ttl, gone)
            else:
                self._reject(key, gone)
        finally:
            self._release()
        self._wrote(size, gone)
        if entries.expires is not None and self._now() >= entries.sweep_at:
            self.expire()

    def _check_key(self, key: Any) -> None:
        """Have everybody take the lock from now on if the key's hash or comparison may be Python."""
        if type(key) is tuple and all(type(part) in _ATOMIC_KEYS for part in key):
            return
        with self._lock:
            self._entries.direct = False
            if isinstance(self, (_Untimed, _Timed)):
                self.__class__ = LRUCache  # type: ignore[assignment]

    def _wrote(self, size: int, gone: Gone) -> None:
        """Do what follows a write, outside of the lock."""
        if gone and self._on_evict is not None:
            self._tell(gone)
        self._unlooked += size or self._each_bytes
        if self._unlooked >= _LOOK_BYTES or self._entries.total_bytes > self._look_bytes:
            self._look()

    def _wait_for_turn(self) -> None:
        """Take the lock that another thread has, blocking only if it keeps it for long."""
        for _ in range(_YIELDS):
            time.sleep(0)
            if self._acquire(False):
                return
        self._acquire()

    def _reject(self, key: K, gone: Gone) -> None:
        """Do not store what is too large; nor keep what it was to replace."""
        self._rejected += 1
        if key in self._entries.data:
            self._entries.remove(key, "size", gone)

    def _weigh(self, key: K, value: V) -> int:
        if self._sizeof is not None:
            size = self._sizeof(value)
            return size if type(size) is int and size >= 0 else weight_of(size, value)
        own = _ENTRY_BYTES if self._entries.expires is None else _ENTRY_BYTES + _TIMED_ENTRY_BYTES
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
        with self._lock:
            expired = self._entries.is_expired(key)
            if key in self._entries.data:
                self._entries.remove(key, "expired" if expired else "deleted", gone)
                self._entries.expirations += expired
        value = self._value(gone[0][1]) if gone and not expired else MISSING
        self._tell(gone)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """
        Remove the least recently used entry and return it.

        Raises:
            KeyError: The cache is empty.
        """
        for key in self:
            value = self.pop(key, MISSING)
            if value is not MISSING:
                return key, value
        raise KeyError(f"{self!r} is empty")

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
        with self._lock:
            self._entries.clear(gone)
            self._dead.clear()
        self._tell(gone)

    # ----- age

    def expire(self) -> int:
        """Drop what has expired; return how many entries that were. Happens by itself now and then while writing."""
        with self._lock:
            keys = self._entries.expired()
        return self._drop_expired(keys)

    def _sweep(self) -> None:
        """Drop what has expired or died, so that counts are true."""
        if self._dead:
            gone: Gone = []
            with self._lock:
                self._bury(gone)
        if self._entries.may_have_expired():
            self.expire()

    def _drop_expired(self, keys: list[Any]) -> int:
        """Drop those of *keys* that are over; another thread may have dropped them, or made them young."""
        count = 0
        for start in range(0, len(keys), _CHUNK):
            gone: Gone = []
            with self._lock:
                for key in keys[start : start + _CHUNK]:
                    if key in self._entries.data and self._entries.is_expired(key):
                        self._entries.remove(key, "expired", gone)
                self._entries.expirations += len(gone)
            self._tell(gone)
            count += len(gone)
        return count

    def _begin_expiring(self) -> None:
        """Keep ages from now on. Readers that are at it go by none, which was true when they began."""
        with self._lock:
            self._entries.begin_expiring()
            self._entries.direct = False
            if isinstance(self, _Untimed):
                self.__class__ = self._fitting()  # type: ignore[assignment]

    # ----- weak values

    def _reference(self, key: K, value: V) -> weakref.ref[Any]:
        dead = self._dead

        def died(reference: weakref.ref[Any]) -> None:
            dead.append((key, reference))  # without the lock: it may come at any moment

        try:
            return weakref.ref(value, died)
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"weak_values=True cannot hold a {kind}: it takes no weak reference") from None

    def _bury(self, gone: Gone) -> None:
        """Drop the entries whose values nobody held any more."""
        while self._dead:
            key, reference = self._dead.popleft()
            if self._entries.data.get(key) is reference:
                self._entries.remove(key, "deleted", gone)

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
        if nbytes != UNBOUNDED and inside.sizes is None:
            self._begin_weighing()
        with self._lock:
            follows = self._max_entry_bytes == inside.max_bytes
            self._max_entry_bytes = nbytes if follows else min(self._max_entry_bytes, nbytes)
            inside.max_entries = inside.cap_entries = entries
            inside.max_bytes = inside.cap_bytes = nbytes
        self._trim(nbytes, entries)

    def _begin_weighing(self) -> None:
        with self._lock:
            self._entries.sizes = {}
            if isinstance(self, _Counted):
                self.__class__ = self._fitting()  # type: ignore[assignment]
            held = pairs_of(self._entries.data)
        for key, each in held:
            value = self._value(each)
            size = 0 if value is MISSING else self._weigh(key, value)
            with self._lock:
                self._entries.weigh(key, each, size)

    def shrink(self, *, to_bytes: ByteSize | None = None, fraction: float | None = None) -> int:
        """
        Drop the least recently used entries; return the bytes that they held.

        Args:
            to_bytes: Until so many are left.
            fraction: Or this part of what is held, 0 to 1.

        Raises:
            TypeError: Neither was given, or both.
            ValueError: It cannot be meant.
        """
        held = self.held_bytes()
        if to_bytes is not None and fraction is None:
            return self.give_back(held - parse_bytes(to_bytes))
        if fraction is None or to_bytes is not None:
            raise TypeError("shrink takes to_bytes or fraction")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction is 0 to 1, got {fraction!r}")
        return self.give_back(round(held * fraction))

    def give_back(self, nbytes: int) -> int:
        """Drop the least recently used entries that hold *nbytes* together; return how many bytes they held."""
        inside, before = self._entries, self.held_bytes()
        if nbytes <= 0 or not inside.data:
            return 0
        self.expire()
        if inside.sizes is not None:
            self._trim(max(0, before - nbytes), UNBOUNDED)
            self._look_bytes = inside.total_bytes + _LOOK_BYTES
            return before - inside.total_bytes
        count = len(inside.data)
        left = max(0, count - -(-count * nbytes // max(before, 1)))
        self._trim(UNBOUNDED, left)
        return before * (count - len(inside.data)) // max(count, 1)

    def _trim(self, cap_bytes: int, cap_entries: int) -> None:
        """Drop the oldest until no more is left than that, in pieces, so that nobody waits long for the lock."""
        while True:
            gone: Gone = []
            with self._lock:
                self._entries.trim(gone, cap_bytes, cap_entries, _CHUNK)
            self._tell(gone)
            if len(gone) < _CHUNK:
                return

    # ----- pressure

    @property
    def shrink_under_pressure(self) -> bool:
        """Whether it gives way when memory is short."""
        return self._shrinks

    def held_bytes(self) -> int:
        """Return the bytes held: :attr:`total_bytes`, but without looking for what has expired."""
        inside = self._entries
        if inside.sizes is not None:
            return inside.total_bytes
        with self._lock:
            count = len(inside.data)
            sample = pairs_of(inside.data, _SAMPLE)
        weighed = sum(self._weigh(key, self._value(held)) for key, held in sample)
        return weighed * count // len(sample) if sample else 0

    def value_per_byte(self) -> float:
        """Return the hits of late for each byte held: those since the last time this was asked, and half of before."""
        self._useful = self._useful / 2 + self._hits - self._hits_before
        self._hits_before = self._hits
        return self._useful / max(1, self.held_bytes())

    def _look(self) -> None:
        """
        Ask how tight memory is, and hold no more than now while it is.

        To ask is to let the breaker relieve, which shrinks the least useful cache first, this one or another.
        """
        self._unlooked = 0
        self._look_bytes = self._entries.total_bytes + _LOOK_BYTES
        if not self._shrinks:
            return
        gate = gate_of(None)
        # While one relieves, the others wait: at 2 GiB a second they would be at the limit before it is done.
        waited = _relieving.acquire(timeout=_LONGEST_WAIT_SECONDS)
        try:
            self._give_way(gate)
        finally:
            if waited:
                _relieving.release()

    def _give_way(self, gate: Gate) -> None:
        inside = self._entries
        if inside.sizes is None:
            self._each_bytes = max(_LEAST_BYTES, self._glance(), self._each_bytes * 7 // 8)
        try:
            usage = gate.check()
        except MemoryCircuitBreakerError as error:
            usage = error.usage
            self.shrink(fraction=0.25)
        count = len(inside.data)
        if usage is not None and count > usage.headroom_bytes // _TABLE_BYTES:
            self._trim(UNBOUNDED, max(1, count // 2, usage.headroom_bytes // _TABLE_BYTES))
        if gate.level is Level.NORMAL:
            inside.cap_bytes, inside.cap_entries = inside.max_bytes, inside.max_entries
            return
        inside.cap_entries = min(inside.cap_entries, max(1, len(inside.data)))
        if inside.sizes is not None:
            inside.cap_bytes = min(inside.cap_bytes, max(1, inside.total_bytes))

    def _glance(self) -> int:
        """Return about how large the newest values are, of a cache that weighs none."""
        newest = pairs_of(self._entries.data, _GLANCE, newest=True)
        sizes = [deep_sizeof(self._value(held), max_objects=_GLANCE_OBJECTS) for _, held in newest]
        return sum(sizes) // max(1, len(sizes))

    # ----- telling

    def _tell(self, gone: Gone) -> None:
        """Tell the callback what went, outside of the lock."""
        if self._on_evict is None:
            return
        for key, held, reason in gone:
            value = self._value(held)
            if value is MISSING:
                continue
            try:
                self._on_evict(key, value, reason)
            except Exception:
                log.exception("%r: on_evict failed for %r", self, key)

    def statistics(self) -> CacheStatistics:
        """Return the counts since the cache was made."""
        total = self.total_bytes
        return CacheStatistics(
            hits=self._hits,
            misses=self._misses,
            evictions=self._entries.evictions,
            expirations=self._entries.expirations,
            rejected=self._rejected,
            entries=len(self),
            total_bytes=total,
            max_entries=self.max_entries,
            max_bytes=self.max_bytes,
        )

    @property
    def total_bytes(self) -> int:
        """Bytes held: the sum of ``sizeof`` where given, else keys, values and overhead; from a sample if unweighed."""
        self._sweep()
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
    def reads_directly(self) -> bool:
        """Whether what it holds are the values themselves, and may be read without its lock."""
        return self._entries.direct

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
        return f"<LRUCache {name}{len(self._entries.data)} entries of {' or '.join(bounds)}>"

    def _renew_lock(self) -> None:
        """Begin with a lock of its own; in a forked child, too: a thread that does not exist there may hold it."""
        self._lock = threading.RLock()
        # Ready to be called: half of what `with` costs.
        self._acquire, self._release = self._lock.acquire, self._lock.release


class _Untimed(LRUCache[K, V]):
    """Reads without lock and age."""

    __slots__ = ()

    def __contains__(self, key: Any) -> bool:
        return key in self._data

    def get(self, key: K, default: Any = None, /) -> Any:
        data = self._data
        if key in data:
            try:
                value = data[key]
                touch = self._touch  # a method in a slot is called faster from a variable
                touch(key)
            except KeyError:  # it went meanwhile
                self._misses += 1
                return default
            self._hits += 1
            return value
        self._misses += 1
        return default

    def __getitem__(self, key: K, /) -> V:
        try:
            value: V = self._data[key]
            touch = self._touch
            touch(key)
        except KeyError:
            self._misses += 1
            raise
        self._hits += 1
        return value


class _Counted(_Untimed[K, V]):
    """Writes without lock, too, where nothing but entries counts: each step is atomic."""

    __slots__ = ()

    def __setitem__(self, key: K, value: V, /) -> None:
        if type(key) not in _ATOMIC_KEYS:
            self._store(key, value, None)
            return
        data, entries = self._data, self._entries
        try:
            if key in data:
                data[key] = value
                touch = self._touch
                touch(key)
            else:
                data[key] = value
                while len(data) > entries.cap_entries:
                    data.popitem(last=False)
                    entries.evictions += 1
        except KeyError:
            self._store(key, value, None)
        self._unlooked += self._each_bytes
        if self._unlooked >= _LOOK_BYTES:
            self._look()


class _Weighed(_Untimed[K, V]):
    """The same as :meth:`LRUCache._store` and :meth:`Entries.put` do, in one piece, without ages and callback."""

    __slots__ = ()

    def __setitem__(self, key: K, value: V, /) -> None:
        entries, data, sizeof = self._entries, self._data, self._sizeof
        sizes: Any = entries.sizes
        if sizeof is None:
            size = self._weigh(key, value)
        else:
            size = sizeof(value)
            if type(size) is not int or size < 0:
                size = weight_of(size, value)
        if size > self._max_entry_bytes or type(key) not in _ATOMIC_KEYS:
            self._store(key, value, None)
            return
        look, before, oldest = False, None, None  # what goes lives until the lock is free
        try:
            # Inside: an interrupt right after it shall not keep the lock.
            acquire = self._acquire
            if not acquire(False):
                self._wait_for_turn()
            if key in data:
                before = data[key]  # noqa: F841 - held
                data[key] = value
                touch = self._touch
                touch(key)
                total = entries.total_bytes + size - sizes.get(key, 0)
            else:
                data[key] = value
                total = entries.total_bytes + size
            sizes[key] = size
            cap_bytes, cap_entries = entries.cap_bytes, entries.cap_entries
            if total > cap_bytes or len(data) > cap_entries:
                oldest = data.popitem(False)
                total -= sizes.pop(oldest[0], 0)
                entries.evictions += 1
                while data and (total > cap_bytes or len(data) > cap_entries):
                    oldest = data.popitem(False), oldest
                    total -= sizes.pop(oldest[0][0], 0)
                    entries.evictions += 1
                # At its bound it grows no more; held below it, it still has to ask whether it may.
                self._unlooked += size
                look = self._unlooked >= _LOOK_BYTES
            entries.total_bytes = total
        finally:
            try:
                release = self._release
                release()
            except RuntimeError:  # interrupted before it was taken
                pass
        if look or total > self._look_bytes:
            self._look()


class _Timed(LRUCache[K, V]):
    """Reads without lock."""

    __slots__ = ()

    def get(self, key: K, default: Any = None, /) -> Any:
        data = self._data
        if key in data:
            try:
                now = self._now()
                if now < self._entries.expires[key]:  # type: ignore[index]
                    value = data[key]
                    touch = self._touch
                    touch(key)
                    self._hits += 1
                    if self._sliding:
                        self._entries.grow_young(key, now)
                    return value
            except KeyError:  # it went meanwhile, or came when there were no ages
                return LRUCache.get(self, key, default)
            self._drop_expired([key])
        self._misses += 1
        return default

    def __getitem__(self, key: K, /) -> V:
        value: Any = self.get(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        found: V = value
        return found


def _after_fork() -> None:
    global _relieving  # noqa: PLW0603 - another thread may have held it
    _relieving = threading.RLock()
    for each in shrinkables.alive():
        if isinstance(each, LRUCache):
            each._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
