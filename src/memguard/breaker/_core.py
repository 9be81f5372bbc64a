"""
Readings and the circuit: what the breaker knows, and when it looks again.

One lock guards the circuit and the ledger. Nothing of others runs under it: no sampler, no listener, no log handler.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from memguard.breaker._config import Config
from memguard.policy import Circuit, Ledger, LineBytes, Mark, State, next_circuit, reading_interval
from memguard.relief import HeapCounts, heap_counts
from memguard.sampling import Machine, Sampler
from memguard.signals import Outbox, Signal
from memguard.units import format_bytes
from memguard.values import Level, MemoryUsage

_log = logging.getLogger("memguard")


@dataclass(frozen=True, slots=True)
class BreakerChange:
    """
    The circuit's state or the level changed.

    Attributes:
        before: The state before.
        after: The state now.
        level: The level now.
        usage: The reading that decided.
        stuck: Whether it was found stuck: open for half a minute while nothing was reserved and nothing changed. It
            tries with raised lines; better is a new process.
    """

    before: State
    after: State
    level: Level
    usage: MemoryUsage
    stuck: bool = False


class _Begun(NamedTuple):
    """A reading that begins: its number, how far the ledger is, what the allocator has in hand, and when."""

    number: int
    mark: Mark
    heap: HeapCounts | None
    at: float


class Core:
    """Readings, lines, circuit and ledger of one breaker."""

    def __init__(self, config: Config, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.clock = clock
        self.on_change: Signal[BreakerChange] = Signal(f"{name}.on_change")
        self.readings = 0
        self.opened = 0
        self.stuck = 0
        self._numbers = itertools.count(1)
        self._decided = 0
        self.on_idle: Callable[[int], object]
        """Told, outside of the lock, what the allocator keeps in a reading that sees nobody hold bytes."""
        self._warned = False
        self.usage: MemoryUsage | None = None
        self.kept_bytes = 0
        """What this process's allocator kept without use in the last reading, as far as it is resident and known."""
        self.circuit = Circuit()
        self.lines: LineBytes | None = None
        # What the hot path looks at: good until then, and whether it must look closer at all.
        self.stale_at = float("-inf")
        self.refusing = False
        self.forget_threads()
        self.apply(config)

    def forget_threads(self) -> None:
        """Begin anew without what other threads held: in a forked child they do not exist."""
        self.lock = threading.Lock()
        self.ledger = Ledger()
        self._reading = threading.Lock()
        self._outbox = Outbox(self._tell)
        self.stale_at = float("-inf")

    def apply(self, config: Config) -> None:
        """Go by *config* from now on; the next reading decides by it."""
        self.config = config
        self.enforcing = config.mode == "enforce"
        self.sampler = _sampler(config)
        self._warned = False
        self.lines = None
        self.stale_at = float("-inf")
        self.refusing = self.enforcing and self.circuit.state is State.OPEN

    def current(self, relieve: Callable[[Sampler], bool] | None = None) -> MemoryUsage:
        """Return the last reading if it is fresh, else take one; *relieve* as in :meth:`refresh`."""
        if self.usage is not None and self.clock() < self.stale_at:
            return self.usage
        return self.refresh(relieve)

    def refresh(self, relieve: Callable[[Sampler], bool] | None = None) -> MemoryUsage:
        """
        Take a reading, unless another thread is at it: then return the last.

        Args:
            relieve: Called if the reading would open the circuit; where it returns True, another reading decides.
        """
        # The lock is only a flag that somebody is at it: nobody waits for it, so a sampler may call back.
        if not self._reading.acquire(blocking=False):
            return self.usage if self.usage is not None else self.read()
        try:
            return self.read(relieve)
        finally:
            self._reading.release()

    def read(self, relieve: Callable[[Sampler], bool] | None = None) -> MemoryUsage:
        """Take a reading of one's own, whoever else is at it, and decide on it."""
        begun = self._begin()
        usage = self._sample()
        if relieve is not None and self._would_open(usage, begun) and relieve(self._sample):
            begun = self._begin()
            usage = self._sample()
        return self._decide(usage, begun)

    def _begin(self) -> _Begun:
        # The heap before the reading: what is taken in between then looks kept, which is the safe side. A foreign
        # sampler speaks of something else than this process.
        number = next(self._numbers)
        with self.lock:
            mark = self.ledger.mark()
        heap = heap_counts() if self.config.sampler is None else None
        return _Begun(number, mark, heap, self.clock())

    def _decide(self, usage: MemoryUsage, begun: _Begun) -> MemoryUsage:
        """Decide on *usage*; tell the listeners if something changed."""
        now = self.clock()
        lines = self._lines(usage.limit_bytes)
        with self.lock:
            if begun.number < self._decided and self.usage is not None:
                return self.usage  # one that began later has decided already
            self._decided = begun.number
            before = self.circuit
            load = lines.load_bytes(usage.used_bytes, _kept_bytes(usage, begun.heap))
            after = next_circuit(before, load, lines, now, reserved_bytes=self.ledger.reserved_bytes)
            self.circuit, self.usage, self.lines = after, usage, after.lines(lines)
            self.ledger.settle(begun.at)
            self.kept_bytes = _kept_bytes(usage, begun.heap)
            self.ledger.observe(usage.used_bytes, begun.mark, self.kept_bytes)
            self.readings += 1
            if after.state is not before.state or after.level is not before.level:
                self.opened += after.state is State.OPEN and before.state is not State.OPEN
                self.stuck += _found_stuck(before, after)
                change = BreakerChange(before.state, after.state, after.level, usage, _found_stuck(before, after))
                self._outbox.put(change)
            self.refusing = after.state is State.OPEN and self.enforcing
            self.stale_at = now + reading_interval(usage.headroom_bytes, self.config.check_interval)
            idle = self.ledger.reserved_bytes == 0
        self._outbox.deliver()
        if idle:
            self.on_idle(self.kept_bytes)
        return usage

    def lines_now(self) -> LineBytes:
        """Return the lines of the last reading; where there is none yet, those of one taken for it."""
        return self.lines or self._lines(self._sample().limit_bytes)

    def retry_after(self) -> float:
        """Return the seconds until trying again may be of use; 0 while closed."""
        circuit = self.circuit
        if circuit.state is State.CLOSED:
            return 0.0
        left = 0.0
        if circuit.state is State.OPEN and circuit.since is not None:
            left = circuit.since + circuit.dwell_seconds - self.clock()
        return max(self.config.check_interval, left)

    def _sample(self) -> MemoryUsage:
        usage = self.sampler()
        limit = self.config.limit_bytes
        # The machine's own reader holds an explicit limit against this process; a foreign sampler gives one figure.
        if limit is not None and self.config.sampler is not None and limit < usage.limit_bytes:
            return replace(usage, limit_bytes=limit, source="explicit")
        return usage

    def _would_open(self, usage: MemoryUsage, begun: _Begun) -> bool:
        lines = self._lines(usage.limit_bytes)
        load = lines.load_bytes(usage.used_bytes, _kept_bytes(usage, begun.heap))
        after = next_circuit(self.circuit, load, lines, self.clock())
        return after.state is State.OPEN and self.circuit.state is not State.OPEN

    def _lines(self, limit_bytes: int) -> LineBytes:
        lines = self.config.lines.at(limit_bytes)
        if lines.capped and not self._warned:
            self._warned = True
            _log.warning(
                "%s: open_at=%s lies above 95 %% of the limit of %s; it acts at %s",
                self.name,
                format_bytes(int(self.config.lines.open_at)),
                format_bytes(limit_bytes),
                format_bytes(lines.open),
            )
        return lines

    def _tell(self, change: BreakerChange) -> None:
        self._report(change)
        self.on_change.announce(change)

    def _report(self, change: BreakerChange) -> None:
        usage = change.usage
        if self.config.mode == "off":
            return
        level = logging.WARNING if change.after is State.OPEN else logging.INFO
        _log.log(
            level,
            "%s: %s (was %s), level %s: %s of %s in use (%.0f %%, %s)",
            self.name,
            change.after,
            change.before,
            change.level.name.lower(),
            format_bytes(usage.used_bytes),
            format_bytes(usage.limit_bytes),
            usage.percent,
            usage.source,
        )
        if change.stuck:
            _log.warning(
                "%s: stuck with %s in use, of which nothing is reserved and nothing comes back; tries up to %s, one at "
                "a time; restart the process when you can",
                self.name,
                format_bytes(usage.used_bytes),
                format_bytes(0 if self.lines is None else self.lines.open),
            )


def _kept_bytes(usage: MemoryUsage, heap: HeapCounts | None) -> int:
    if usage.malloc_free_bytes is not None:
        return min(usage.malloc_free_bytes, usage.anon_bytes)
    return 0 if heap is None else heap.kept_bytes(usage.anon_bytes)


def _found_stuck(before: Circuit, after: Circuit) -> bool:
    return after.raised_bytes is not None and before.raised_bytes != after.raised_bytes


def _sampler(config: Config) -> Sampler:
    return Machine(limit_bytes=config.limit_bytes) if config.sampler is None else config.sampler


def seconds_left(deadline: float | None) -> float | None:
    """Return the seconds until *deadline* of :func:`time.monotonic`; None for ever."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
