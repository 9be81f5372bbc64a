"""
Who waits for bytes: first come, first served, threads and tasks in one queue that belongs to nobody.

Whoever gives back, reads or joins serves it; each who waits also looks by itself now and then, so a wake-up that is
lost costs a moment and no more. Bytes are booked for a waiter before it is woken, so nobody can overtake it.

A task whose event loop is closed is taken out. One whose loop has not been running for a second keeps its place, but
nobody waits for it. Zero bytes stand in a queue of their own: the circuit alone decides about them.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

from memguard.breaker._desk import WAITING, Desk, Grant
from memguard.breaker._readings import Readings
from memguard.signals import contained

if TYPE_CHECKING:
    from memguard.breaker._loop import LoopBell

Presence: TypeAlias = Literal["here", "resting", "gone"]
Verdict: TypeAlias = Literal["too large", "stalled"]
_FIRST_POLL_SECONDS = 0.25
_POLL_SECONDS = 1.0
"""How often those look who are not the first: it costs little, and none starves whatever became of the first."""

_RESTING_SECONDS = 1.0
"""A loop that is run again and again, as in a notebook, rests for moments."""


class ThreadBell:
    """Wakes one thread. A bare lock: unlike an Event, a handler in the waiting thread itself may ring it, too."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake who waits, or who will wait next."""
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Wait until it rings, or *seconds* are over."""
        self._lock.acquire(timeout=min(seconds, _thread.TIMEOUT_MAX))

    def presence(self) -> Presence:
        """A thread that waits is there."""
        return "here"


class Standing:
    """
    One who stands in a line.

    Attributes:
        bell: Wakes it.
    """

    __slots__ = ("__weakref__", "_rests_since", "bell")

    def __init__(self, bell: ThreadBell | LoopBell) -> None:
        self.bell = bell
        self._rests_since: float | None = None

    def presence(self) -> Presence:
        """Tell whether it can go on: here, on a loop that has not run for a while, or gone with its loop."""
        presence = contained(self.bell.presence, what="event loop") or "gone"
        if presence != "resting":
            self._rests_since = None
            return presence
        now = time.monotonic()
        if self._rests_since is None:
            self._rests_since = now
        return "resting" if now - self._rests_since >= _RESTING_SECONDS else "here"


class Waiter(Standing):
    """
    One who waits for bytes.

    Attributes:
        grant: What it waits for.
        nested: Whether it holds bytes already: those come back only when it can go on.
        verdict: Why it is refused, once it is.
        over: Whether whoever waited has gone on, with its bytes or without: from then on they are not the queue's.
    """

    __slots__ = ("grant", "nested", "over", "verdict")

    def __init__(self, grant: Grant, bell: ThreadBell | LoopBell) -> None:
        super().__init__(bell)
        self.grant = grant
        self.nested = grant.outer is not None
        self.verdict: Verdict | None = None
        self.over = False

    @property
    def settled(self) -> bool:
        """Whether it need not wait any more, or nobody is there who does."""
        return self.over or self.verdict is not None or self.grant.state != WAITING or self.grant() is None


class Queue:
    """The queue of one desk."""

    def __init__(self, desk: Desk, readings: Readings) -> None:
        self._desk = desk
        self._readings = readings

    # ----- serving

    def serve(self) -> bool:
        """Admit from the head as far as there is room; tell whether nobody is left who is there to wait for bytes."""
        self._desk.sweep()
        if self._desk.zeros:
            self._serve(self._desk.zeros)
        return not self._desk.queue or self._serve(self._desk.queue)

    def _serve(self, line: deque[Waiter]) -> bool:
        resting = 0
        while (waiter := _at(line, resting)) is not None:
            if waiter.settled:
                self._dismiss(line, waiter)
                continue
            presence = waiter.presence()
            if presence == "resting":
                resting += 1
                continue
            if presence == "gone":
                self._abandon(waiter)
            elif self._can_never_fit(waiter.grant):
                waiter.verdict = "too large"
            elif not self._desk.admit(waiter.grant, in_turn=True) and not self._unlock(line):
                return False
        return True

    def prune(self) -> None:
        """
        Take out all whose loop is gone, wherever they stand, and all who need not wait any more.

        Not for order's sake: such a waiter keeps its loop alive, and so the other tasks of that, which may hold bytes
        that the head waits for.
        """
        for line in (self._desk.queue, self._desk.zeros):
            for waiter in list(line):
                if not waiter.settled and waiter.presence() == "gone":
                    self._abandon(waiter)
                if waiter.settled:
                    self._dismiss(line, waiter)

    def _dismiss(self, line: deque[Waiter], waiter: Waiter) -> None:
        """Take *waiter* out of *line* and wake it. Redone as a whole if something came in between."""
        try:
            waiter.bell.ring()
        except RuntimeError:  # its event loop was closed
            self._abandon(waiter)
        with contextlib.suppress(ValueError):  # another thread was faster
            line.remove(waiter)

    def _abandon(self, waiter: Waiter) -> None:
        """Take back what *waiter*, whose loop is gone, has or waits for, unless it went on before that."""
        if not waiter.over:
            self._desk.leave(waiter.grant)

    def _can_never_fit(self, grant: Grant) -> bool:
        lines = self._desk.view.lines
        return lines is not None and grant.asked_bytes > lines.open

    # ----- those who wait for each other

    def _unlock(self, line: deque[Waiter]) -> bool:
        """
        If all that is booked belongs to those who wait, let one of them go on; tell whether one does.

        As far as the highest threshold, or else refuse the youngest of them, whose bytes then come back.
        """
        nested = [waiter for waiter in list(line) if waiter.nested and not waiter.settled]
        lines = self._desk.view.lines
        if not nested or lines is None or self._desk.permits == 0 or self.running_bytes() > 0:
            return False
        if self._desk.admit(nested[0].grant, beyond_bytes=lines.highest() - lines.open):
            return True
        nested[-1].verdict = "stalled"
        nested[-1].bell.ring()
        return False

    def running_bytes(self) -> int:
        """Return what is booked for others than those who wait."""
        blocked: dict[int, Grant] = {}
        for waiter in list(self._desk.queue):
            grant: Grant | None = waiter.grant
            while grant is not None and id(grant) not in blocked:
                blocked[id(grant)] = grant
                grant = grant.outer
        return self._desk.reserved_bytes - sum(grant.nbytes for grant in blocked.values())

    # ----- waiting

    @contextlib.contextmanager
    def standing(self, grant: Grant, bell: ThreadBell | LoopBell) -> Iterator[Waiter]:
        """Stand in the queue; whatever happens, leave it."""
        waiter = Waiter(grant, bell)
        line = self._desk.queue if grant.asked_bytes else self._desk.zeros
        try:
            self._desk.wait(grant)
            if waiter.nested:
                line.appendleft(waiter)
            else:
                line.append(waiter)
            self.serve()
            yield waiter
        except BaseException:
            self._desk.leave(grant)
            raise
        finally:
            waiter.over = True
            with contextlib.suppress(ValueError):
                line.remove(waiter)
            # Whoever stood behind may fit, or is the first now and has to look.
            self.serve()
            first = self.first()
            if first is not None:
                contained(first.bell.ring, what="wake-up")

    def first(self) -> Waiter | None:
        """Return the first who is there; those whose event loop rests are passed over."""
        for waiter in list(self._desk.queue) or list(self._desk.zeros):
            if not waiter.settled and waiter.presence() == "here":
                return waiter
        return None

    def pause(self, waiter: Waiter, deadline: float | None) -> float:
        """Return how long *waiter* may sleep before it looks by itself."""
        poll = _POLL_SECONDS
        if self.first() is waiter:
            until_stale = self._desk.stale_at - self._readings.clock()
            poll = min(_FIRST_POLL_SECONDS, max(0.001, until_stale))
        return poll if deadline is None else max(0.0, min(poll, deadline - time.monotonic()))


def _at(line: deque[Waiter], index: int) -> Waiter | None:
    try:
        return line[index]
    except IndexError:
        return None


_running_loop: list[Callable[[], object]] = []


def in_event_loop() -> bool:
    """Tell whether this thread runs an event loop of asyncio right now."""
    if not _running_loop:
        # Whoever runs one has imported asyncio. Imported here, it would be paid for by all.
        events = sys.modules.get("asyncio.events")
        if events is None:
            return False
        _running_loop.append(events._get_running_loop)
    return _running_loop[0]() is not None
