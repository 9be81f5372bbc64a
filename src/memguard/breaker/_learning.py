"""
Learns what guarded functions cost, and lets as many of their calls run at once as is known to be safe.

Only a call that ran alone is measured. So the first calls of a function, and now and then a later one, wait until
nobody else of these runs, and keep others out while they run. What runs side by side cannot be measured, but it can
contradict: if the process grew by clearly more than all that runs was believed to need, everybody is let out, what is
left is looked at, and the functions concerned are believed less.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memguard.breaker._queue import Standing, ThreadBell
from memguard.forking import forget_in_child
from memguard.logs import log
from memguard.policy import Features, FunctionCost, tolerance_bytes
from memguard.relief import HeapCounts, heap_counts, trim
from memguard.sampling import PeakMeasurement, measure_cheaply
from memguard.signals import contained

if TYPE_CHECKING:
    from memguard.breaker._loop import LoopBell


_PATIENCE_SECONDS = 5.0
"""So long a call that runs alone keeps others out: it may be a stream to a slow client."""
_WORTH_BYTES = 1024**2
_SMALL_PART = 256
"""A call that books less than this part of the room does not wait for its turn to be measured again and again."""
_SMALL_EVERY = 64


@dataclass(frozen=True, slots=True)
class LearnedCost:
    """
    What is known of one guarded function.

    Attributes:
        calls: Calls so far.
        booked_bytes: What the last one booked.
        peak_bytes: The most that one was seen to take, as far as one was measured.
        overruns: How often calls were seen to take clearly more than they booked.
    """

    calls: int = 0
    booked_bytes: int = 0
    peak_bytes: int = 0
    overruns: int = 0


class Room(NamedTuple):
    """
    What there is to be booked, in bytes.

    Attributes:
        idle_bytes: Below the threshold, if nobody holds any.
        spare_bytes: Above it, up to the limit.
    """

    idle_bytes: int
    spare_bytes: int


class Record:
    """What a breaker knows of one function."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cost = FunctionCost()
        self.calls = 0
        self.booked_bytes = 0
        self.peak_bytes = 0
        self.overruns = 0
        self.told = False

    def learned(self) -> LearnedCost:
        """Return it for people."""
        return LearnedCost(self.calls, self.booked_bytes, self.peak_bytes, self.overruns)


class _Idle(NamedTuple):
    """
    The process at the last moment when nobody ran, trimmed.

    Attributes:
        resident_bytes: Its size.
        other_bytes: What of it is neither handed out by malloc nor held free.
    """

    resident_bytes: int
    other_bytes: int


class Call:
    """
    One call of a function whose cost is learned.

    Attributes:
        alone: Whether it was alone so far, so that it measures what it takes.
        small: Whether it books so little of the room that looking at it each time is not worth the time.
        runs: Whether it has begun.
        since: When it passed the gate, or began.
        asked_since: When it first asked to pass.
        waits: Whether it waits for its turn; where nothing is refused, nobody does.
        lent_bytes: What is held around it, by this breaker: it comes back only once it has run. None for nothing.
    """

    __slots__ = (
        "__weakref__",
        "alone",
        "asked",
        "asked_since",
        "booked_bytes",
        "estimate",
        "estimated_by",
        "hidden_bytes",
        "lent_bytes",
        "peak_bytes",
        "record",
        "runs",
        "since",
        "small",
        "waits",
    )

    def __init__(self, record: Record, asked: Features) -> None:
        self.record = record
        self.asked = asked
        self.alone = False
        self.small = False
        self.runs = False
        self.since = 0.0  # passed the gate, or begun
        self.asked_since = time.monotonic()
        self.waits = True
        self.lent_bytes: int | None = None
        self.booked_bytes = 0
        self.peak_bytes = 0
        self.hidden_bytes = 0
        self.estimate: int | None = None
        self.estimated_by: FunctionCost | None = None

    @property
    def passes_at_once(self) -> bool:
        """Whether it never waits before the gate: others may wait for what is held around it."""
        return not self.waits or self.lent_bytes is not None

    @property
    def believed_bytes(self) -> int:
        """What it is believed to take: by its estimate, or else all that it booked."""
        return self.booked_bytes if self.estimate is None else self.estimate


class _Passed(NamedTuple):
    """A call that has passed the gate; known weakly, so that one that dies without having ended is forgotten."""

    call: weakref.ref[Call]
    solo: bool


class Gate:
    """
    Where calls of learned functions wait for their turn. One for each breaker.

    Decisions are made on a copy and committed only if nothing has changed: nothing here is called under the lock.
    """

    def __init__(
        self,
        room: Callable[[], Room],
        *,
        heap: Callable[[], HeapCounts | None] = heap_counts,
        give_back: Callable[[], object] = trim,
        meter: Callable[[], PeakMeasurement] = measure_cheaply,
    ) -> None:
        self._room = room
        self._heap = heap
        self._give_back = give_back
        self._meter = meter
        self.on_overrun: Callable[[Record, int, int], object] = lambda record, booked, peak: None  # noqa: ARG005
        self._forget_threads()
        forget_in_child(self)
        # What it needs is imported now: a child that is forked in the midst of an import waits for it for ever.
        contained(heap, what="allocator")

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()
        self._passed: dict[int, _Passed] = {}
        self._running: dict[int, weakref.ref[Call]] = {}
        self._numbers = itertools.count()
        # Known weakly: an exception of a signal handler may keep one who stood here from leaving the queue.
        self._queue: deque[weakref.ref[Standing]] = deque()
        self._block: PeakMeasurement | None = None
        self._idle: _Idle | None = None
        self._first_other_bytes: int | None = None
        self._held_bytes = 0
        self._suspect: tuple[int, tuple[Call, ...]] | None = None

    # ----- passing

    def passes(self, call: Call) -> bool:
        """Let *call* pass if it may now."""
        number = next(self._numbers)
        while True:
            before = self._passed
            inside = _alive(before)
            if self._suspect is not None and not call.passes_at_once:
                if any(not self._is_long(each) for each, _ in inside):
                    return False
                self._judge([each for each, _ in inside])
            solo = self._is_due(call) and not self._goes_beside(call, inside)
            if not self._may_pass(call, inside, solo=solo):
                return False
            after = {n: passed for n, passed in before.items() if passed.call() is not None}
            call.since = time.monotonic()
            after[number] = _Passed(weakref.ref(call), solo)
            with self._lock:
                done = self._passed is before
                if done:
                    self._passed = after
            if done:
                call.alone = solo
                return True

    def _is_due(self, call: Call) -> bool:
        room, cost = self._room(), call.record.cost
        estimate = self._estimate(call, room)
        small = estimate is not None and estimate * _SMALL_PART < room.idle_bytes
        due = cost.is_due(call.asked, estimate)
        call.small = small and (not due or cost.is_known(call.asked))
        return due and not (call.small and cost.of(call.asked).since < _SMALL_EVERY)

    def _estimate(self, call: Call, room: Room) -> int | None:
        """Return what *call* is believed to take; once for what is known now."""
        cost = call.record.cost
        if call.estimated_by is not cost:
            call.estimated_by = cost
            call.estimate = cost.estimate(call.asked, room.spare_bytes)
        return call.estimate

    def _goes_beside(self, call: Call, inside: list[tuple[Call, bool]]) -> bool:
        """
        Tell whether *call*, which should be measured alone, goes in beside others nevertheless.

        Those inside may wait for bytes that are held around it; or by it, unknown to us, which time alone can tell.
        """
        if call.passes_at_once:
            return True
        asked_for_long = time.monotonic() - call.asked_since >= _PATIENCE_SECONDS
        return bool(inside) and asked_for_long and all(self._is_long(each) for each, _ in inside)

    def _may_pass(self, call: Call, inside: list[tuple[Call, bool]], *, solo: bool) -> bool:
        if call.passes_at_once:
            return True
        if solo:
            return not inside
        if any(alone and not self._is_long(each) for each, alone in inside):
            return False
        beside = sum(each.record is call.record for each, _ in inside)
        return beside < call.record.cost.most_at_once

    @staticmethod
    def _is_long(call: Call) -> bool:
        """Tell whether *call* has been inside for so long that nobody waits for it any more."""
        return time.monotonic() - call.since >= _PATIENCE_SECONDS

    def left(self, call: Call) -> None:
        """Note that *call* is out, however it ended."""
        while True:
            before = self._passed
            after = {n: passed for n, passed in before.items() if passed.call() not in (None, call)}
            with self._lock:
                done = self._passed is before
                if done:
                    self._passed = after
            if done:
                break
        self._wake_first()

    @contextlib.contextmanager
    def standing(self, bell: ThreadBell | LoopBell) -> Iterator[Standing]:
        """Stand in the queue before the gate; whatever happens, leave it."""
        standing = Standing(bell)
        reference = weakref.ref(standing)
        try:
            self._queue.append(reference)
            yield standing
        finally:
            with contextlib.suppress(ValueError):
                self._queue.remove(reference)
            self._wake_first()

    def _wake_first(self) -> None:
        for reference in list(self._queue):
            first = reference()
            if first is not None:
                contained(first.bell.ring, what="wake-up")
                return

    def is_first(self, standing: Standing | None) -> bool:
        """Tell whether nobody who can go on stands before *standing*; None: in the whole queue."""
        for reference in list(self._queue):
            each = reference()
            if each is standing and each is not None:
                return True
            presence = "gone" if each is None else each.presence()
            if presence == "gone":
                with contextlib.suppress(ValueError):
                    self._queue.remove(reference)
            elif presence == "here":
                return False
        return True

    # ----- measuring

    def book(self, call: Call) -> int:
        """Return what *call* is to book, as of now."""
        room = self._room()
        estimate = self._estimate(call, room)
        booked = call.record.cost.booked_bytes(call.asked, estimate, room.idle_bytes)
        if estimate is None and call.lent_bytes is not None:
            booked = call.lent_bytes  # whoever holds that has said what the work takes
        call.booked_bytes = call.record.booked_bytes = booked
        return booked

    def begin(self, call: Call) -> None:
        """Note that *call* runs; measure it if it is alone."""
        running = self._runs()
        call.since, call.runs = time.monotonic(), True
        if running:
            if not call.small:
                self._fold(running)
            for each in (*running, call):
                each.alone = False
        elif not call.small or call.alone:
            call.alone = call.alone or call.record.cost.may_be_measured(call.asked)
            self._settle(call)
        self._running[id(call)] = weakref.ref(call)

    def end(self, call: Call, *, failed: bool) -> None:
        """Note that *call* has ended; learn from it."""
        record = call.record
        record.calls += 1
        running = self._runs()
        call.runs = False
        measured = (call.alone or not call.small) and self._fold(running)
        self._running.pop(id(call), None)
        idle = self._idle
        if not (call.alone and measured and idle is not None and not failed):
            record.cost = record.cost.ended(call.asked)
            return
        low = max(0, call.peak_bytes - idle.resident_bytes)
        record.peak_bytes = max(record.peak_bytes, low)
        record.cost = record.cost.measured(call.asked, low, call.hidden_bytes, self._room().spare_bytes)

    def _runs(self) -> list[Call]:
        found = []
        for number, reference in list(self._running.items()):
            call = reference()
            if call is None or not call.runs:
                self._running.pop(number, None)
            else:
                found.append(call)
        return found

    def _settle(self, call: Call) -> None:
        """Nobody runs: look at the process as it is, trimmed."""
        heap = self._heap()
        if call.alone and heap is not None and heap.free_bytes > _WORTH_BYTES:
            self._give_back()
            heap = self._heap()
        lap = self._lap()
        if lap is None:
            self._idle = None
            call.alone = False
            return
        resident = lap[0]
        other = resident - (0 if heap is None else heap.used_bytes)
        if self._first_other_bytes is None:
            self._first_other_bytes = other
        self._idle = _Idle(resident, other)
        self._held_bytes = 0
        call.hidden_bytes = max(0, other - self._first_other_bytes)
        call.peak_bytes = resident

    def _fold(self, running: list[Call]) -> bool:
        """Read the peak since the last look, for all that run; tell whether it could be read."""
        lap = self._lap()
        if lap is None:
            for each in running:
                each.alone = False
            return False
        resident, peak = lap
        for each in running:
            each.peak_bytes = max(each.peak_bytes, peak)
        idle = self._idle
        if idle is None:
            return True
        total = sum(each.believed_bytes for each in running)
        over = peak - idle.resident_bytes - self._held_bytes - total
        lone = len(running) == 1 and running[0].alone
        if over > tolerance_bytes(total) and not lone and (self._suspect is None or over > self._suspect[0]):
            self._suspect = over, tuple(running)
        heap = self._heap()
        if heap is not None:
            # An upper bound of what ended calls left with the allocator: only a certain overrun counts.
            self._held_bytes = max(0, min(heap.free_bytes, resident - heap.used_bytes - idle.other_bytes))
        return True

    def _judge(self, inside: list[Call]) -> None:
        """
        Calls took more than was believed: find out whether it was theirs, and believe less.

        Args:
            inside: Long calls that still run: what they are believed to take is not what stays behind.
        """
        suspect, self._suspect = self._suspect, None
        idle = self._idle
        if suspect is None or idle is None:
            return
        self._give_back()
        lap = self._lap()
        if lap is None:
            return
        # What stays after that is not theirs: request bodies, caches, kept results.
        stays = lap[0] - idle.resident_bytes - sum(each.believed_bytes for each in inside)
        over = suspect[0] - max(0, stays)
        calls = suspect[1]
        total = sum(each.believed_bytes for each in calls)
        if over <= tolerance_bytes(total):
            return
        # A small excess is shared, a large one is one call's.
        more = over // len(calls) if over <= total // 4 else over
        spare = self._room().spare_bytes
        for call in calls:
            record = call.record
            record.overruns += 1
            record.cost = record.cost.contradicted(call.asked, more, spare)
            self.on_overrun(record, call.booked_bytes, call.booked_bytes + more)

    def _lap(self) -> tuple[int, int] | None:
        """Return (resident bytes, the most since the last look); None where no meter answers that may be believed."""
        try:
            block = self._block
            if block is None:
                block = self._meter()
                block.__enter__()
                if block.meter != "kernel":
                    block.__exit__(None, None, None)
                    return None
                self._block = block  # stays open: another block that begins or ends reads no less for it
            return block.lap()
        except (OSError, ValueError, RuntimeError) as error:
            log.debug("a call could not be measured: %s", error)
            return None


def _alive(passed: dict[int, _Passed]) -> list[tuple[Call, bool]]:
    return [(call, each.solo) for each in list(passed.values()) if (call := each.call()) is not None]
