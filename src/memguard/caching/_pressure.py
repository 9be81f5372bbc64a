"""
How a cache gives way when memory is short: it asks now and then, and holds no more than it does while memory is tight.
"""

from __future__ import annotations

import sys
from typing import Any

from memguard.caching._bounds import UNBOUNDED
from memguard.caching._entries import Entries, Gone
from memguard.errors import MemoryCircuitBreakerError
from memguard.sizing import deep_sizeof
from memguard.turns import Claim, Turn
from memguard.units import ByteSize, parse_bytes
from memguard.values import Gate, Level, gate_of

LOOK_BYTES = 1024 * 1024
"""How much is stored before a cache asks how tight memory is."""
FIRST_BYTES = 64 * 1024
_LEAST_BYTES = 1024
"""What an entry counts there, in a cache that weighs none: at first, and at least."""
_GLANCE = 5
_GLANCE_OBJECTS = 200
_TABLE_BYTES = 300
"""What an entry may need at once when the tables grow; they are made anew at times even if no entries are added."""
_SAMPLE = 20
_LONGEST_WAIT_SECONDS = 0.5
"""A callback of the one that relieves may be waited for in turn; so not for ever."""
_CHUNK = 1000
"""Entries that are dropped before their callbacks run."""
relieving = Turn()
"""Of the cache that asks: the others wait, or they would be at the limit before it is done."""


class GivesWay:
    """The part of a cache that holds less when memory is short."""

    __slots__ = (
        "_each_bytes",
        "_entries",
        "_hits_before",
        "_look_bytes",
        "_shrinks",
        "_unlooked",
        "_useful",
    )

    _entries: Entries
    _shrinks: bool
    _look_bytes: int
    _each_bytes: int
    _unlooked: int
    _useful: float
    _hits_before: int

    def _weigh(self, key: Any, value: Any) -> int:
        raise NotImplementedError

    def _value(self, held: Any) -> Any:
        raise NotImplementedError

    def _time(self) -> float:
        raise NotImplementedError

    def _tell(self, gone: Gone) -> None:
        raise NotImplementedError

    def expire(self) -> int:
        """Drop what has expired; return how many entries that were. Happens by itself now and then while writing."""
        raise NotImplementedError

    @property
    def shrink_under_pressure(self) -> bool:
        """Whether it gives way when memory is short."""
        return self._shrinks

    def held_bytes(self) -> int:
        """Return the bytes held: :attr:`total_bytes`, but without looking for what has expired."""
        inside = self._entries
        if self._weighs:
            return inside.total_bytes
        weighed = [
            self._weigh(entry.key, self._value(getattr(entry, "value", None))) for entry in inside.there(_SAMPLE)
        ]
        return sum(weighed) * inside.count // len(weighed) if weighed else 0

    @property
    def _weighs(self) -> bool:
        raise NotImplementedError

    def value_per_byte(self) -> float:
        """Return the hits of late for each byte held: those since the last time this was asked, and half of before."""
        hits = self._entries.hits
        self._useful = self._useful / 2 + hits - self._hits_before
        self._hits_before = hits
        return self._useful / max(1, self.held_bytes())

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
        if nbytes <= 0 or not inside.count:
            return 0
        self.expire()
        if self._weighs:
            self._trim(max(0, before - nbytes), UNBOUNDED)
            self._look_bytes = inside.total_bytes + LOOK_BYTES
            return before - inside.total_bytes
        count = inside.count
        left = max(0, count - -(-count * nbytes // max(before, 1)))
        self._trim(UNBOUNDED, left)
        return before * (count - inside.count) // max(count, 1)

    def _trim(self, cap_bytes: int, cap_entries: int) -> None:
        """Drop the oldest until no more is left than that, and tell of them piece by piece."""
        while True:
            gone: Gone = []
            dropped = self._entries.trim(gone, cap_bytes, cap_entries, self._time(), _CHUNK)
            self._tell(gone)
            if dropped < _CHUNK:
                return

    def _look(self) -> None:
        """
        Ask how tight memory is, and hold no more than now while it is.

        To ask is to let the breaker relieve, which shrinks the least useful cache first, this one or another.
        """
        self._unlooked = 0
        self._look_bytes = self._entries.total_bytes + LOOK_BYTES
        if not self._shrinks:
            return
        claim = Claim(relieving)
        try:
            if not (claim.take() or self._may_go_on_beside(claim)):
                self._stay_as_large()
                return
            self._give_way(gate_of(None))
        finally:
            claim.give_back()

    def _may_go_on_beside(self, claim: Claim) -> bool:
        """Wait for the cache that asks, as far as that may be; return whether to ask after it, or beside it."""
        if _on_event_loop():
            return False
        relieving.wait(_LONGEST_WAIT_SECONDS)
        claim.take()
        return True

    def _give_way(self, gate: Gate) -> None:
        inside = self._entries
        if not self._weighs:
            self._each_bytes = max(_LEAST_BYTES, self._glance(), self._each_bytes * 7 // 8)
        try:
            usage = gate.check()
        except MemoryCircuitBreakerError as error:
            usage = error.usage
            self.shrink(fraction=0.25)
        count = inside.count
        if usage is not None and count > usage.headroom_bytes // _TABLE_BYTES:
            self._trim(UNBOUNDED, max(1, count // 2, usage.headroom_bytes // _TABLE_BYTES))
        if gate.level is Level.NORMAL:
            inside.cap_bytes, inside.cap_entries = inside.max_bytes, inside.max_entries
        else:
            self._stay_as_large()

    def _stay_as_large(self) -> None:
        """Hold no more than now until memory is normal."""
        inside = self._entries
        inside.cap_entries = min(inside.cap_entries, max(1, inside.count))
        if self._weighs:
            inside.cap_bytes = min(inside.cap_bytes, max(1, inside.total_bytes))

    def _glance(self) -> int:
        """Return about how large the newest values are, of a cache that weighs none."""
        newest = self._entries.there(_GLANCE, newest=True)
        sizes = [
            deep_sizeof(self._value(getattr(entry, "value", None)), max_objects=_GLANCE_OBJECTS) for entry in newest
        ]
        return sum(sizes) // max(1, len(sizes))


def _on_event_loop() -> bool:
    """Tell whether this thread runs an event loop, which must not stand still."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None
