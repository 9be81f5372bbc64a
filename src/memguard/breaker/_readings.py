"""
Readings and the circuit: what the breaker knows, and when it looks again.

A reading is taken, decided on and swapped in without a lock being held: no sampler, listener or log handler ever runs
under one. A reading that fails keeps the last one and shortens its life; the work it was taken for goes on.
"""

from __future__ import annotations

import itertools
import logging
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from memguard.breaker._config import Config
from memguard.breaker._desk import Counts, Desk, Note, View
from memguard.errors import MemguardError, SamplingError
from memguard.interrupts import is_interrupt
from memguard.logs import log
from memguard.policy import LineBytes, State, next_circuit, next_floor, reading_interval, top_bytes
from memguard.relief import HeapCounts, heap_counts
from memguard.sampling import Machine, Sampler
from memguard.signals import Signal, contained
from memguard.turns import Claim, Turn
from memguard.units import format_bytes
from memguard.values import Level, MemoryUsage

_BLIND_SECONDS = 0.1
"""How soon to look again after a reading that failed."""
_OWN_FAILURES = (MemguardError, OSError, ValueError, MemoryError)
_UNKNOWN = MemoryUsage(0, 0, 0, 2**63 - 1, "unknown", 0.0)
"""What stands for a reading where none has ever succeeded: nothing is in use, nothing limits."""


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
            tries with raised thresholds; better is a new process.
    """

    before: State
    after: State
    level: Level
    usage: MemoryUsage
    stuck: bool = False


class _Begun(NamedTuple):
    """A reading that begins: its number, how far the books are, what the allocator has in hand, and when."""

    number: int
    counts: Counts
    heap: HeapCounts | None
    at: float


class _Reader:
    """Somebody who takes a reading, until when nobody else needs to."""

    __slots__ = ("due_at",)

    def __init__(self, due_at: float) -> None:
        self.due_at = due_at


class Readings:
    """Takes the readings of one breaker, and decides on them."""

    def __init__(self, desk: Desk, config: Config, name: str) -> None:
        self.desk = desk
        self.name = name
        self.clock = desk.clock
        self.on_change: Signal[BreakerChange] = Signal(f"{name}.on_change")
        self.on_idle: Callable[[int], object] = lambda kept_bytes: None  # noqa: ARG005
        """Told what the allocator keeps in a reading that sees nobody hold bytes."""
        self.running_bytes: Callable[[], int] = lambda: desk.reserved_bytes
        """Returns what is booked for others than those who wait."""
        self.opened = 0
        self.stuck = 0
        self._numbers = itertools.count(1)
        self._lingering: dict[threading.Thread, tuple[float, int]] = {}
        self._failing = False
        self._warned = False
        self.forget()
        self.apply(config)

    def forget(self) -> None:
        """Begin anew without what other threads were at: in a forked child they do not exist."""
        self._reader: _Reader | None = None
        self._lingering.clear()
        self._told = self.desk.last_note
        self._telling = Turn()

    def apply(self, config: Config) -> None:
        """Go by *config* from now on; the next reading decides by it."""
        self._warned = False
        self.config = config
        self.sampler = _sampler(config)
        self.desk.enforcing = config.mode == "enforce"
        self.desk.stale_at = float("-inf")

    # ----- looking

    @property
    def view(self) -> View:
        """What the last reading showed."""
        return self.desk.view

    @property
    def fresh(self) -> bool:
        """Whether the last reading is still good."""
        return self.clock() < self.desk.stale_at

    @property
    def usage(self) -> MemoryUsage:
        """The last reading."""
        return self.desk.view.usage or _UNKNOWN

    @property
    def refusing(self) -> bool:
        """Whether the last reading left the circuit open, and that counts."""
        return self.desk.permits == 0 and self.desk.enforcing

    def current(self, relieve: Callable[[Sampler], bool] | None = None) -> MemoryUsage:
        """Return the last reading if it is fresh, else take one; *relieve* as in :meth:`refresh`."""
        if not self.fresh:
            self.refresh(relieve)
        return self.usage

    def refresh(self, relieve: Callable[[Sampler], bool] | None = None) -> None:
        """
        Take a reading, unless another thread is at it.

        Args:
            relieve: Called if the reading would open the circuit; where it returns True, another reading decides.
        """
        now = self.clock()
        reader = self._reader
        if reader is not None and now < reader.due_at and self.desk.view.number:
            return
        # Whoever hangs in a reading is not waited for beyond the time in which readings are due.
        mine = _Reader(now + self.config.check_interval)
        try:
            self._reader = mine
            self.read(relieve)
        finally:
            if self._reader is mine:
                self._reader = None

    def look(self) -> None:
        """Take a reading for work that ended, where readings are taken at all."""
        if self.config.mode != "off":
            self.refresh()

    def read(self, relieve: Callable[[Sampler], bool] | None = None) -> None:
        """Take a reading of one's own, whoever else is at it, and decide on it."""
        begun = self._begin()
        usage = self._sample()
        if relieve is not None and usage is not None and self._would_open(usage, begun) and relieve(self.sampler):
            begun = self._begin()
            usage = self._sample()
        if usage is None:
            self._missed(begun)
        else:
            self._decide(usage, begun)

    def linger(self, nbytes: int, until: float) -> None:
        """
        Go on counting *nbytes* that this thread gave back just now, up to a reading that begins at *until* or later.

        A job that gave its bytes back has often not freed them yet: they are freed when its function returns, and
        beside many threads that takes a while.
        """
        self._lingering[threading.current_thread()] = until, nbytes

    def gone_on(self) -> None:
        """This thread asks for the next: what lingered of it is given back just now."""
        if self._lingering:
            thread = threading.current_thread()
            _, nbytes = self._lingering.get(thread, (0.0, 0))
            if nbytes:
                self._lingering[thread] = self.clock(), nbytes

    # ----- deciding

    def _begin(self) -> _Begun:
        # The heap before the reading: what is taken in between then looks kept, which is the safe side. A foreign
        # sampler speaks of something else than this process.
        heap = None
        if self.config.sampler is None:
            heap = contained(heap_counts, what="allocator")
        return _Begun(next(self._numbers), self.desk.counts(), heap, self.clock())

    def _sample(self) -> MemoryUsage | None:
        sampler, config = self.sampler, self.config
        # What our own reader may raise is known: an exception of a signal handler, such as a time limit, passes.
        failures = _OWN_FAILURES if config.sampler is None else Exception
        try:
            usage = _checked(sampler())
            # The machine's own reader holds an explicit limit against this process; a foreign sampler gives one figure.
            limit = config.limit_bytes
            if limit is not None and config.sampler is not None and limit < usage.limit_bytes:
                usage = replace(usage, limit_bytes=limit, source="explicit")
        except failures as error:
            if is_interrupt(error):
                raise
            if not self._failing:
                log.warning("%s: no reading (%r); goes by the last one", self.name, error)
            self._failing = True
            return None
        self._failing = False
        return usage

    def _missed(self, begun: _Begun) -> None:
        desk = self.desk
        if desk.view.usage is None:
            # Nothing is known: work is not held up by that.
            desk.room_bytes = 2**62
        desk.stale_at = begun.at + min(self.config.check_interval, _BLIND_SECONDS)

    def _decide(self, usage: MemoryUsage, begun: _Begun) -> None:
        """Decide on *usage*; tell the listeners if something changed."""
        desk, now = self.desk, self.clock()
        told = self._thresholds(usage.limit_bytes)
        lingering = self._lingering_bytes(begun.at, now)
        while True:
            before = desk.view
            if begun.number < before.number:
                return  # one that began later has decided already
            quiet = begun.counts == desk.counts()
            after = self._next(before, usage, begun, told, now, quiet=quiet)
            if quiet and desk.reserved_bytes == 0:
                # Nothing is left to tell apart: what lingers is in use, or gone.
                self._lingering.clear()
                lingering = 0
            assert after.lines is not None
            top = top_bytes(after.lines, after.kept_bytes)
            below = after.floor.nbytes + lingering
            note = _note(before, after)
            if desk.settle(before, after, note, told_bytes=below, top_bytes=top, began=begun.counts):
                break
        if self.config.mode != "off":  # where readings are never fresh, nothing goes by them
            desk.stale_at = now + reading_interval(usage.headroom_bytes, self.config.check_interval)
        self._tell_all()
        if desk.reserved_bytes == 0:
            self.on_idle(after.kept_bytes)

    def _next(
        self, before: View, usage: MemoryUsage, begun: _Begun, told: LineBytes, now: float, *, quiet: bool
    ) -> View:
        desk = self.desk
        kept = _kept_bytes(usage, begun.heap)
        reserved = desk.reserved_bytes
        # What those hold who only wait for more keeps nobody from finding it stuck.
        running = self.running_bytes() if reserved and before.circuit.state is State.OPEN else reserved
        circuit = next_circuit(
            before.circuit,
            told.load_bytes(usage.used_bytes, kept),
            told,
            now,
            reserved_bytes=running,
            finished=desk.finished,
            step_seconds=self.config.check_interval,
        )
        floor = next_floor(before.floor, usage.used_bytes, kept, reserved, quiet=quiet)
        return View(begun.number, usage, circuit.lines(told), circuit, floor, kept, begun.counts.freed_bytes)

    def _lingering_bytes(self, began_at: float, now: float) -> int:
        """Return what lingers, as far as the reading that began at *began_at* need not have seen what became of it."""
        total = 0
        for thread, (until, nbytes) in list(self._lingering.items()):
            if until <= began_at:
                self._lingering.pop(thread, None)
                continue
            total += nbytes
            if not thread.is_alive():
                self._lingering[thread] = now, nbytes
        return total

    def _would_open(self, usage: MemoryUsage, begun: _Begun) -> bool:
        circuit = self.desk.view.circuit
        if circuit.state is State.OPEN:
            return False
        told = self._thresholds(usage.limit_bytes)
        load = told.load_bytes(usage.used_bytes, _kept_bytes(usage, begun.heap))
        return next_circuit(circuit, load, told, self.clock()).state is State.OPEN

    # ----- thresholds

    def thresholds(self) -> LineBytes:
        """Return the thresholds that count; where no reading was taken yet, those of one taken for it."""
        lines = self.desk.view.lines
        if lines is None:
            usage = self._sample()
            return self._thresholds(_UNKNOWN.limit_bytes if usage is None else usage.limit_bytes)
        return lines

    def retry_after(self) -> float:
        """Return the seconds until trying again may be of use; 0 while closed."""
        circuit, usage, lines = self.desk.view.circuit, self.desk.view.usage, self.desk.view.lines
        if circuit.state is State.CLOSED:
            return 0.0
        left = 0.0
        if circuit.state is State.OPEN and usage is not None and lines is not None:
            left = circuit.dwells_until(usage.used_bytes, lines) - self.clock()
        return max(self.config.check_interval, left)

    def _thresholds(self, limit_bytes: int) -> LineBytes:
        lines = self.config.lines.at(limit_bytes)
        if lines.capped and not self._warned:
            self._warned = True
            log.warning(
                "%s: open_at=%s lies above 95 %% of the limit of %s; it acts at %s",
                self.name,
                format_bytes(int(self.config.lines.open_at)),
                format_bytes(limit_bytes),
                format_bytes(lines.open),
            )
        return lines

    # ----- telling

    def _tell_all(self) -> None:
        """Tell what there is to tell, in order, one at a time; another thread that is at it goes on with ours."""
        while self._told.next is not None:
            claim = Claim(self._telling)
            try:
                if not claim.take():
                    return
                while (note := self._told.next) is not None:
                    self._told = note
                    self._tell(cast("BreakerChange", note.what))
            finally:
                claim.give_back()

    def _tell(self, change: BreakerChange) -> None:
        self.opened += change.after is State.OPEN and change.before is not State.OPEN
        self.stuck += change.stuck
        contained(self._report, change, what="log of")
        self.on_change.announce(change)

    def _report(self, change: BreakerChange) -> None:
        usage = change.usage
        if self.config.mode == "off":
            return
        level = logging.WARNING if change.after is State.OPEN else logging.INFO
        log.log(
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
            log.warning(
                "%s: stuck with %s in use, of which nothing is reserved and nothing comes back; tries up to %s, one at "
                "a time; restart the process when you can",
                self.name,
                format_bytes(usage.used_bytes),
                format_bytes(self.thresholds().open),
            )


def _checked(usage: MemoryUsage) -> MemoryUsage:
    """
    Return *usage* if it can be meant.

    Raises:
        SamplingError: It is no reading: of another kind, negative, or not of whole bytes.
    """
    try:
        used_bytes, limit_bytes = operator.index(usage.used_bytes), operator.index(usage.limit_bytes)
        operator.index(usage.anon_bytes)
    except (AttributeError, TypeError) as error:
        raise SamplingError(f"the sampler returned {usage!r}, which is no MemoryUsage of whole bytes") from error
    if used_bytes < 0 or limit_bytes < 0:
        raise SamplingError(f"the sampler returned {used_bytes} of {limit_bytes} bytes; neither can be negative")
    return usage


def _note(before: View, after: View) -> Note | None:
    """Return what is to be told of a change, if there was one."""
    old, new = before.circuit, after.circuit
    if new.state is old.state and new.level is old.level:
        return None
    assert after.usage is not None
    found_stuck = new.raised_bytes is not None and old.raised_bytes != new.raised_bytes
    return Note(BreakerChange(old.state, new.state, new.level, after.usage, found_stuck))


def _kept_bytes(usage: MemoryUsage, heap: HeapCounts | None) -> int:
    if usage.malloc_free_bytes is not None:
        return min(usage.malloc_free_bytes, usage.anon_bytes)
    # Where addresses are limited, the reading leaves out already what the allocator holds free.
    if heap is None or usage.source.startswith("rlimit"):
        return 0
    return heap.kept_bytes(usage.anon_bytes)


def _sampler(config: Config) -> Sampler:
    return Machine(limit_bytes=config.limit_bytes) if config.sampler is None else config.sampler
