"""
Who gets bytes, and who waits: first come, first served, threads and tasks in one line.

Bytes are booked for a waiter before it is woken, so nobody can overtake it. A waiter that gives up after that gives
them back. The head of the line takes readings while it waits; the others sleep until they are the head.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memguard.breaker._core import Core, seconds_left
from memguard.errors import MemoryCircuitBreakerError
from memguard.policy import Ledger, State
from memguard.relief import Relief, tops
from memguard.sampling import Sampler
from memguard.values import MemoryUsage

if TYPE_CHECKING:
    from memguard.breaker._loop import LoopEvent

_LONGEST_POLL_SECONDS = 0.25
_LINGER_SECONDS = 1.0
"""
Beside 40 busy threads one waits up to half a second for the interpreter. By then a thread that left its reservation
has freed what it held, or keeps it.
"""
_RELIEFS = 8
"""How often one caller relieves before it is refused, where each helps."""
_SLACK = 32
"""Caches give so small a part of the line more than is asked for, so that not each reservation has to ask."""
_TIDY_BYTES = 8 * 1024**2
_CLOSED = State.CLOSED  # looked up at each reservation


@dataclass(slots=True)
class Grant:
    """Bytes booked in a ledger, and perhaps a place on the ramp."""

    nbytes: int
    ledger: Ledger
    on_ramp: bool = False


@dataclass(slots=True, eq=False)
class _Waiter:
    nbytes: int
    wake: Callable[[], object]
    nested: bool
    grant: Grant | None = field(default=None)


class Admission:
    """Books bytes in the core's ledger, and keeps the waiting line."""

    def __init__(self, core: Core, relief: Relief) -> None:
        self._core = core
        self.relief = relief
        self.admitted = 0
        self.refused = 0
        self._asked_bytes = 0  # by the last that did not fit: what relief in another thread goes by
        # Reservations that were dropped without being left: a finalizer may run inside any locked part, so it only
        # puts them here.
        self.dropped: deque[Grant] = deque()
        core.on_idle = self._tidy
        self.forget_threads()

    def forget_threads(self) -> None:
        """Begin anew without what other threads held."""
        self._line: deque[_Waiter] = deque()
        self._on_ramp = 0
        self._reliever: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Callers in line."""
        return len(self._line)

    def allows(self, nbytes: int) -> bool:
        """Tell whether *nbytes* would be booked now."""
        self._core.current()
        with self._core.lock:
            return not self._core.enforcing or (not self._line and self._fits(nbytes))

    def room_bytes(self) -> int:
        """Return what is left below the line if nobody holds any; never negative."""
        usage = self._core.current()
        with self._core.lock:
            lines, ledger = self._core.lines, self._core.ledger
            assert lines is not None
            unreserved = ledger.counted_bytes(usage.used_bytes) - ledger.reserved_bytes
            return max(0, lines.open - max(0, unreserved))

    # ----- entering

    def enter(self, nbytes: int, timeout: float | None, *, nested: bool = False) -> Grant:
        """
        Book *nbytes*, waiting up to *timeout* seconds in this thread; None waits for ever.

        Raises:
            MemoryCircuitBreakerError: There was no room in time, or there can never be.
        """
        core = self._core
        grant = self._try(nbytes, nested) if core.clock() < core.stale_at else None
        grant = grant or self._at_once(nbytes, nested)
        if grant is not None:
            return grant
        self._asked_bytes = nbytes
        if in_event_loop():
            self.relieve_aside()
        elif not self._line:
            grant = self._after_relief(nbytes, nested)
        grant = grant or self._reuse(nbytes)
        if grant is not None:
            return grant
        if timeout == 0:
            raise self._refusal(nbytes)
        return self._wait(nbytes, timeout, nested)

    async def aenter(self, nbytes: int, timeout: float | None, *, nested: bool = False) -> Grant:
        """Book *nbytes* as :meth:`enter` does, without blocking the event loop."""
        grant = self._at_once(nbytes, nested)
        if grant is not None:
            return grant
        self._asked_bytes = nbytes
        if not self._line and self.relief.due:
            await self._relieved()
            grant = self._after_reading(nbytes, nested)
        grant = grant or self._reuse(nbytes)
        if grant is not None:
            return grant
        if timeout == 0:
            raise self._refusal(nbytes)
        return await self._await(nbytes, timeout, nested)

    def _at_once(self, nbytes: int, nested: bool) -> Grant | None:
        usage = self._core.current(self._shrink_first())
        with self._core.lock:
            self._core.ledger.gone(threading.current_thread())
        grant = self._try(nbytes, nested) or self._after_reading(nbytes, nested)
        if grant is None and self._core.lines is not None and nbytes > self._core.lines.open:
            raise self._refusal(nbytes, usage)
        return grant

    def _after_reading(self, nbytes: int, nested: bool) -> Grant | None:
        self._read_again()
        self._serve()
        return self._try(nbytes, nested)

    def _after_relief(self, nbytes: int, nested: bool) -> Grant | None:
        """Relieve and try, again while it may help: another thread may have run it, or taken what came of it."""
        for _ in range(_RELIEFS):
            if not self.relief.attempt(self._read_used, wanted=self._wanted(nbytes)):
                return None
            grant = self._after_reading(nbytes, nested)
            if grant is not None:
                return grant
        return None

    def _read_again(self) -> None:
        if self._core.circuit.state is _CLOSED:
            # Of one's own: another thread's may have begun before the last caller gave its bytes back.
            self._core.read(self._shrink_first())
        else:
            # Readings move the ramp: a herd shall not take one each.
            self._core.refresh()

    def _shrink_first(self) -> Callable[[Sampler], bool] | None:
        """Return what relieves ahead of a reading that would open the circuit, if caches can still give way."""
        return self.relieve if self.relief.caches_hold_bytes() else None

    def _try(self, nbytes: int, nested: bool) -> Grant | None:
        core = self._core
        with core.lock:
            if self.dropped:
                self._free_dropped()
            fits = self._fits(nbytes, nested)
            if core.enforcing and (not fits or (self._line and not nested)):
                return None
            self.refused += not fits and core.config.mode == "observe"
            return self._book(nbytes)

    # ----- under the lock

    def _fits(self, nbytes: int, nested: bool = False) -> bool:
        core = self._core
        state = core.circuit.state
        if state is not _CLOSED and (state is State.OPEN or (self._on_ramp >= core.circuit.permits and not nested)):
            return False
        if nbytes == 0:
            return True
        assert core.usage is not None
        assert core.lines is not None
        return core.ledger.fits(nbytes, core.usage.used_bytes, core.lines.open, core.lines.highest())

    def _book(self, nbytes: int) -> Grant:
        core = self._core
        on_ramp = core.circuit.state is not _CLOSED
        self._on_ramp += on_ramp
        core.ledger.book(nbytes)
        self.admitted += 1
        return Grant(nbytes, core.ledger, on_ramp)

    def _free(self, grant: Grant) -> None:
        # A grant from before a fork belongs to the parent's ledger.
        if grant.ledger is self._core.ledger:
            grant.ledger.free(grant.nbytes)
            self._on_ramp -= grant.on_ramp
        grant.nbytes, grant.on_ramp = 0, False

    def _free_dropped(self) -> None:
        while self.dropped:
            self._free(self.dropped.popleft())

    def nothing(self) -> Grant:
        """Return a grant of no bytes, for what another one covers."""
        return Grant(0, self._core.ledger)

    # ----- leaving

    def leave(self, grant: Grant) -> None:
        """Give back what *grant* booked, and see who can go on."""
        core = self._core
        with core.lock:
            nbytes = grant.nbytes
            self._free(grant)
            if self._line and core.config.sampler is None and not in_event_loop():
                core.ledger.linger(nbytes, threading.current_thread(), core.clock() + _LINGER_SECONDS)
        if self._line:
            # What was given back is often still in the last reading.
            self._read_again()
            self._serve()
            self._wake_head()

    def grow(self, grant: Grant, nbytes: int) -> None:
        """
        Book *nbytes* more on *grant*, without waiting.

        Raises:
            MemoryCircuitBreakerError: They do not fit.
        """
        more = self._try(nbytes, nested=True) or self._after_reading(nbytes, nested=True)
        if more is None and not in_event_loop():
            more = self._after_relief(nbytes, nested=True)
        if more is None:
            raise self._refusal(nbytes)
        with self._core.lock:
            # Grown by the bytes alone: the place on the ramp is held already.
            self._on_ramp -= more.on_ramp
            grant.nbytes += more.nbytes

    def shrink(self, grant: Grant, nbytes: int) -> None:
        """Give *nbytes* of *grant* back."""
        with self._core.lock:
            part = Grant(min(nbytes, grant.nbytes), grant.ledger)
            grant.nbytes -= part.nbytes
        self.leave(part)

    # ----- waiting

    def _serve(self) -> None:
        """Admit from the head of the line as far as there is room; wake whoever is concerned."""
        woken: list[_Waiter] = []
        with self._core.lock:
            self._free_dropped()
            while self._line and (not self._core.enforcing or self._fits(self._line[0].nbytes, self._line[0].nested)):
                waiter = self._line.popleft()
                waiter.grant = self._book(waiter.nbytes)
                woken.append(waiter)
            if woken and self._line:
                woken.append(self._line[0])  # the new head begins to look
        for waiter in woken:
            self._wake(waiter)

    def _wake(self, waiter: _Waiter) -> None:
        try:
            waiter.wake()
        except RuntimeError:
            # Its event loop is closed: nobody will ever leave what was booked for it.
            self._withdraw(waiter)

    def _join(self, waiter: _Waiter) -> None:
        with self._core.lock:
            if waiter.nested and not self._fits(waiter.nbytes, nested=True):
                # Its caller was admitted already, and what it holds comes back only when it can go on.
                self._line.appendleft(waiter)
            elif not waiter.nested and (self._line or not self._fits(waiter.nbytes)):
                self._line.append(waiter)
            else:
                waiter.grant = self._book(waiter.nbytes)

    def _withdraw(self, waiter: _Waiter) -> None:
        """Take *waiter* out of the line; give back what was booked for it meanwhile."""
        with self._core.lock:
            if waiter.grant is not None:
                self._free(waiter.grant)
                waiter.grant = None
            elif waiter in self._line:
                self._line.remove(waiter)
        # Whoever stood behind may fit, or is the head now and has to look.
        self._serve()
        self._wake_head()

    def _wake_head(self) -> None:
        """Let the head of the line look: it sleeps for ever if it was not the head when it lay down."""
        head = self._head()
        if head is not None:
            self._wake(head)

    def _head(self) -> _Waiter | None:
        try:
            return self._line[0]
        except IndexError:
            return None

    def _pause(self, waiter: _Waiter, deadline: float | None) -> float | None:
        """Return how long *waiter* may sleep; None until it is woken."""
        left = seconds_left(deadline)
        if self._head() is not waiter:
            return left
        until_stale = max(0.001, self._core.stale_at - self._core.clock())
        poll = min(_LONGEST_POLL_SECONDS, until_stale)
        return poll if left is None else min(poll, left)

    def _wait(self, nbytes: int, timeout: float | None, nested: bool) -> Grant:
        deadline = None if timeout is None else time.monotonic() + timeout
        event = threading.Event()
        waiter = _Waiter(nbytes, event.set, nested)
        if self._core.config.sampler is None:
            tops.give_back_own()  # who waits shall not sit on free memory
        self._join(waiter)
        try:
            while True:
                grant = self._taken(waiter)
                if grant is not None:
                    return grant
                if seconds_left(deadline) == 0:
                    raise self._refusal(nbytes)
                event.wait(self._pause(waiter, deadline))
                event.clear()
                if self._head() is waiter:
                    self.relief.attempt(self._read_used, wanted=self._wanted(nbytes))
                    self._look(waiter)
        except BaseException:
            self._withdraw(waiter)
            raise

    async def _await(self, nbytes: int, timeout: float | None, nested: bool) -> Grant:
        deadline = None if timeout is None else time.monotonic() + timeout
        event = _loop_event()
        waiter = _Waiter(nbytes, event.set, nested)
        self._join(waiter)
        try:
            while True:
                grant = self._taken(waiter)
                if grant is not None:
                    return grant
                if seconds_left(deadline) == 0:
                    raise self._refusal(nbytes)
                await event.wait(self._pause(waiter, deadline))
                event.clear()
                if self._head() is waiter:
                    self.relieve_aside()
                    self._look(waiter)
        except BaseException:
            self._withdraw(waiter)
            raise

    def _taken(self, waiter: _Waiter) -> Grant | None:
        """Take what was booked for *waiter*: from here on it is the caller's to leave."""
        with self._core.lock:
            grant, waiter.grant = waiter.grant, None
            return grant

    def _look(self, waiter: _Waiter) -> None:
        """As the head of the line: read again, admit who fits, or try what the allocator holds free."""
        self._core.refresh()
        self._serve()
        if self._head() is waiter:
            grant = self._reuse(waiter.nbytes, head=waiter)
            if grant is not None:
                waiter.grant = grant
                self._wake_head()

    # ----- relief

    def relieve(self, sample: Sampler) -> bool:
        """Run relief in this thread if it may; tell whether a new reading is worth taking."""
        if in_event_loop():
            self.relieve_aside()
            return False
        return self.relief.attempt(lambda: sample().used_bytes, wanted=self._wanted(0))

    def relieve_aside(self) -> threading.Thread | None:
        """Run relief in a thread of its own, and a reading after it, if it is due and none is running."""
        if not self.relief.due:
            return self._reliever
        return self._relieve_in_thread(self._relieve_here)

    def _relieve_in_thread(self, relieve: Callable[[], object]) -> threading.Thread:
        running = self._reliever
        if running is not None and running.is_alive():
            return running
        thread = self._reliever = threading.Thread(target=relieve, name="memguard-relief", daemon=True)
        thread.start()
        return thread

    def _tidy(self, kept_bytes: int) -> None:
        """Give back, in a thread of its own, what a burst left with the allocator, once nobody holds bytes."""
        if kept_bytes >= _TIDY_BYTES and not self._line and self.relief.tidy_due:
            self._relieve_in_thread(lambda: self.relief.attempt(self._read_used, tidy=True))

    def _wanted(self, nbytes: int) -> Callable[[int], int]:
        """Return what tells how many bytes are too many while *nbytes* are asked for."""

        def wanted(used_bytes: int) -> int:
            core = self._core
            lines = core.lines_now()
            with core.lock:
                counted = core.ledger.counted_bytes(used_bytes)
            too_many = counted + nbytes - lines.open if nbytes else 0
            if too_many > 0:
                too_many += lines.open // _SLACK
            return max(too_many, used_bytes - lines.close) if used_bytes >= lines.open else too_many

        return wanted

    def _relieve_here(self) -> None:
        waiting = self._line[0].nbytes if self._line else self._asked_bytes
        if self.relief.attempt(self._read_used, wanted=self._wanted(waiting)):
            self._core.refresh()
            self._serve()

    async def _relieved(self) -> None:
        """Wait for a relief in another thread."""
        done = _loop_event()

        def relieve() -> None:
            try:
                self._relieve_here()
            finally:
                # A loop that was closed meanwhile has nobody who waits.
                with contextlib.suppress(RuntimeError):
                    done.set()

        threading.Thread(target=relieve, name="memguard-relief", daemon=True).start()
        await done.wait()

    def _read_used(self) -> int:
        return self._core.sampler().used_bytes

    def _reuse(self, nbytes: int, *, head: _Waiter | None = None) -> Grant | None:
        """
        Admit one caller on memory that the allocator holds free, also while the circuit is open for that.

        Such pages are not lost: the next allocation takes them. Which thread's arena holds them is not known, so only
        one caller at a time goes in on them, and only where it would not reach the limit even if it got none.
        """
        core = self._core
        admitted = self.admitted
        if core.usage is None or self._busy() or not core.kept_bytes:
            return None
        # Of one's own: another thread's may have begun before the last job took what it keeps.
        usage = core.read()
        lines = core.lines
        assert lines is not None
        if usage.used_bytes - core.kept_bytes + nbytes > lines.open:
            return None
        if usage.used_bytes + nbytes > lines.highest():
            return None
        with core.lock:
            if self._busy() or self.admitted != admitted or self._line_before(head):
                return None
            if head is not None:
                self._line.popleft()
            grant = self._book(nbytes)
            if not grant.on_ramp:
                grant.on_ramp = True
                self._on_ramp += 1
            return grant

    def _busy(self) -> bool:
        return self._core.ledger.reserved_bytes > 0 or self._on_ramp > 0

    def _line_before(self, head: _Waiter | None) -> bool:
        return bool(self._line) if head is None else not self._line or self._line[0] is not head

    def _refusal(self, nbytes: int, usage: MemoryUsage | None = None) -> MemoryCircuitBreakerError:
        core = self._core
        seen = usage or core.usage or core.current()
        with core.lock:
            self.refused += 1
            reserved = core.ledger.reserved_bytes
        line = None if core.lines is None else core.lines.open
        again = core.retry_after() or core.config.check_interval
        return MemoryCircuitBreakerError(seen, nbytes, reserved, again, line)

    def refusal(self) -> MemoryCircuitBreakerError:
        """Return the error of a plain check, and count it."""
        return self._refusal(0)


def in_event_loop() -> bool:
    """Tell whether this thread runs an event loop right now."""
    # Whoever runs one has imported asyncio. Imported here, it would be paid for by all.
    running_loop = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    return running_loop is not None and running_loop() is not None


def _loop_event() -> LoopEvent:
    from memguard.breaker._loop import LoopEvent  # noqa: PLC0415 - likewise

    return LoopEvent()
