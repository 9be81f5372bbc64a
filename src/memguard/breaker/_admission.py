"""
How somebody gets bytes: the order of attempts, told once.

1. What the last reading leaves, if it is fresh.
2. A new reading: what was given back is often still in the last one.
3. Relief and a new reading.
4. Pages that the allocator holds free: one at a time, since which thread's arena holds them is not known.
5. The queue, as long as the caller waits.

While the circuit is open, the last reading stands until it is stale: a refusal is cheap, and a herd moves nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from memguard.breaker._desk import HELD, Desk, Grant
from memguard.breaker._queue import Queue, ThreadBell, Waiter, in_event_loop
from memguard.breaker._readings import Readings
from memguard.breaker._relieving import Relieving
from memguard.errors import MemoryCircuitBreakerError, ReservationTooLargeError
from memguard.policy import State
from memguard.relief import tops
from memguard.signals import contained
from memguard.values import MemoryUsage

if TYPE_CHECKING:
    from memguard.breaker._loop import LoopBell

_LINGER_SECONDS = 1.0
"""
Beside 40 busy threads one waits up to half a second for the interpreter. By then a thread that left its reservation
has freed what it held, or keeps it.
"""
_RELIEFS = 16
"""How often one caller relieves before it is refused, where each helps."""


class Admission:
    """Has bytes booked for those who ask, one attempt after the other."""

    def __init__(self, desk: Desk, readings: Readings, queue: Queue, relieving: Relieving) -> None:
        self._desk = desk
        self._readings = readings
        self._queue = queue
        self._relieving = relieving

    # ----- asking without taking

    def check(self) -> MemoryUsage:
        """
        Return the reading that new work may go by.

        Raises:
            MemoryCircuitBreakerError: The circuit is open.
        """
        readings, relieving = self._readings, self._relieving
        if readings.config.mode == "off":
            return readings.usage
        if not readings.fresh:
            readings.refresh(relieving.ahead)
        if readings.refusing and relieving.worth_a_try and relieving.ahead(readings.sampler):
            readings.read()
        if readings.refusing:
            raise self.refusal(0)
        return readings.usage

    def allows(self, nbytes: int, *, nested: bool = False) -> bool:
        """
        Tell whether *nbytes* would be booked now, after the same attempts as for booking them.

        Args:
            nbytes: What is asked for, without what those around it have left.
            nested: Whether there is one around it.
        """
        desk, readings = self._desk, self._readings
        if not desk.enforcing:
            return True
        if readings.fresh and desk.fits(nbytes, nested=nested):
            return True
        if desk.fits(nbytes, in_turn=self._look_again(), nested=nested):
            return True
        for _ in range(self._reliefs(nbytes)):
            if not self._relieving.here(nbytes):
                break
            if desk.fits(nbytes, in_turn=self._look_again(relieved=True), nested=nested):
                return True
        return self._reusable(nbytes) and desk.reserved_bytes == 0 and desk.on_ramp == 0 and not desk.queue

    # ----- taking

    def enter(self, grant: Grant, timeout: float | None) -> None:
        """
        Book what *grant* asks for, waiting up to *timeout* seconds in this thread; None waits for ever.

        Raises:
            MemoryCircuitBreakerError: There was no room in time.
            ReservationTooLargeError: There can never be.
        """
        if self._off(grant) or self._at_once(grant) or self._after_relief(grant) or self._reuse(grant):
            return
        if timeout == 0:
            raise self.refusal(grant.asked_bytes)
        self._wait(grant, timeout)

    async def aenter(self, grant: Grant, timeout: float | None) -> None:
        """Book what *grant* asks for as :meth:`enter` does, without blocking the event loop."""
        if self._off(grant) or self._at_once(grant):
            return
        if await self._after_relief_elsewhere(grant) or self._reuse(grant):
            return
        if timeout == 0:
            raise self.refusal(grant.asked_bytes)
        await self._await(grant, timeout)

    def grow(self, grant: Grant, size: int) -> bool:
        """
        Have *grant* hold *size* bytes instead of fewer, without waiting; tell whether it was held so that it could.

        Raises:
            MemoryCircuitBreakerError: They do not fit.
        """
        desk = self._desk
        nbytes = size - grant.asked_bytes
        if self._readings.config.mode == "off" or grant.books is not desk.books:
            grant.asked_bytes = size  # it stands in no books, or in those of the process before a fork
            return grant.state == HELD
        if grant.outer is not None:
            desk.gather(grant.outer, nbytes)
        if self._readings.fresh and desk.grow(grant, size):
            return True
        self._look_again()
        for _ in range(self._reliefs(nbytes)):
            if desk.grow(grant, size):
                return True
            if grant.state != HELD or not self._relieving.here(nbytes):
                break
            self._look_again(relieved=True)
        if desk.grow(grant, size):
            return True
        if grant.state == HELD and grant.books is desk.books:
            raise self.refusal(nbytes)
        return False

    def leave(self, grant: Grant) -> None:
        """Give back what *grant* holds, and see who can go on. From wherever the interpreter happens to be."""
        desk = self._desk
        back = desk.leave(grant)
        if desk.queue or desk.zeros:
            self.gave_back(back)

    def shrink(self, grant: Grant, size: int) -> int:
        """Have *grant* hold *size* bytes instead of more; return how many are missing since others drew them."""
        missing = self._desk.shrink(grant, size)
        if not missing and (self._desk.queue or self._desk.zeros):
            self.gave_back(0)
        return missing

    def gave_back(self, nbytes: int) -> None:
        """See who can go on, now that *nbytes* came back."""
        readings = self._readings
        if nbytes and readings.config.sampler is None and not in_event_loop():
            readings.linger(nbytes, readings.clock() + _LINGER_SECONDS)
        # What was given back is often still in the last reading.
        self._look_again()
        first = self._queue.first()
        if first is not None:
            contained(first.bell.ring, what="wake-up")

    # ----- attempts

    def _off(self, grant: Grant) -> bool:
        if self._readings.config.mode != "off":
            return False
        grant.state, grant.books = HELD, None  # of nothing: it stands in no books
        return True

    def _at_once(self, grant: Grant) -> bool:
        # Where nothing is refused, what would have been is told after a new reading, as it would be refused.
        if self._readings.fresh and self._desk.enforcing and self._desk.admit(grant):
            return True
        self._readings.gone_on()
        if self._after_reading(grant):
            return True
        lines = self._desk.view.lines
        if lines is not None and self._desk.enforcing and grant.asked_bytes > lines.open:
            raise self.refusal(grant.asked_bytes)
        return False

    def _after_reading(self, grant: Grant, *, relieved: bool = False) -> bool:
        return self._desk.admit(grant, in_turn=self._look_again(relieved=relieved))

    def _look_again(self, *, relieved: bool = False) -> bool:
        """Take a reading if one may tell something new; tell whether nobody is there to wait for bytes."""
        readings = self._readings
        if not readings.fresh:
            readings.refresh(self._relieving.first())
        elif relieved or self._desk.view.circuit.state is State.CLOSED:
            # Of one's own: another thread's may have begun before the last caller gave its bytes back.
            readings.read(self._relieving.first())
        return self._queue.serve()

    def _may_relieve(self, nbytes: int) -> bool:
        """Tell whether relief may help: those who wait see to it themselves, and once a reading while open."""
        if self._desk.queue or not (nbytes or self._readings.refusing):
            return False
        return self._desk.view.circuit.state is State.CLOSED or self._relieving.worth_a_try

    def _reliefs(self, nbytes: int) -> int:
        """Return how often relief may be tried in this thread."""
        if not self._may_relieve(nbytes):
            return 0
        if in_event_loop():
            self._relieving.aside(nbytes)
            return 0
        return _RELIEFS

    def _after_relief(self, grant: Grant) -> bool:
        """Relieve and try, again while it may help: another thread may have run it, or taken what came of it."""
        for _ in range(self._reliefs(grant.asked_bytes)):
            if not self._relieving.here(grant.asked_bytes):
                return False
            if self._after_reading(grant, relieved=True):
                return True
        return False

    async def _after_relief_elsewhere(self, grant: Grant) -> bool:
        if not self._may_relieve(grant.asked_bytes) or not await self._relieving.elsewhere(grant.asked_bytes):
            return False
        return self._after_reading(grant, relieved=True)

    def _reusable(self, nbytes: int) -> bool:
        """Tell whether *nbytes* fit if the next allocation takes what the allocator holds free, and if it does not."""
        desk = self._desk
        if not desk.view.kept_bytes or desk.reserved_bytes or desk.on_ramp:
            return False
        # Of one's own: another thread's may have begun before the last job took what it keeps.
        self._readings.read()
        view = desk.view
        if view.usage is None or view.lines is None:
            return False
        used_bytes = view.usage.used_bytes
        without = used_bytes - view.kept_bytes + nbytes
        return without <= view.lines.open and used_bytes + nbytes <= view.lines.highest()

    def _reuse(self, grant: Grant, *, in_turn: bool = False) -> bool:
        """
        Admit one caller on memory that the allocator holds free, also while the circuit is open for that.

        Such pages are not lost: the next allocation takes them. Which thread's arena holds them is not known, so only
        one caller at a time goes in on them, and only where it would not reach the limit even if it got none.
        """
        before = self._desk.counts()
        if not self._desk.enforcing or not self._reusable(grant.asked_bytes):
            return False
        return self._desk.reuse(grant, before, in_turn=in_turn)

    # ----- waiting

    def _wait(self, grant: Grant, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._readings.config.sampler is None:
            contained(tops.give_back_own, what="allocator")  # who waits shall not sit on free memory
        bell = ThreadBell()
        with self._queue.standing(grant, bell) as waiter:
            while not self._is_over(waiter, deadline):
                bell.wait(self._queue.pause(waiter, deadline))
                if not waiter.settled:
                    self._look(waiter, here=True)

    async def _await(self, grant: Grant, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        bell = _loop_bell()
        with self._queue.standing(grant, bell) as waiter:
            while not self._is_over(waiter, deadline):
                await bell.wait(self._queue.pause(waiter, deadline))
                if not waiter.settled:
                    self._look(waiter, here=False)

    def _is_over(self, waiter: Waiter, deadline: float | None) -> bool:
        grant = waiter.grant
        if grant.state == HELD:
            return True
        if waiter.verdict is not None or (deadline is not None and time.monotonic() >= deadline):
            raise self.refusal(grant.asked_bytes)
        if waiter.settled or grant.books is not self._desk.books:
            raise RuntimeError("a reservation that waits was released, or its process was forked; make another")
        return False

    def _look(self, waiter: Waiter, *, here: bool) -> None:
        """Read again, admit who fits; as the first, have memory given back, and try what the allocator holds free."""
        first = self._queue.first() is waiter
        if first:
            self._queue.prune()
            if here:
                self._relieving.here(waiter.grant.asked_bytes)
            else:
                self._relieving.aside(waiter.grant.asked_bytes)
        self._readings.refresh()
        self._queue.serve()
        if first and not waiter.settled:
            self._reuse(waiter.grant, in_turn=True)

    # ----- refusing

    def refusal(self, nbytes: int) -> MemoryCircuitBreakerError:
        """Return the error for somebody who asked for *nbytes*, and count it."""
        desk, readings = self._desk, self._readings
        desk.refused += 1
        lines = desk.view.lines
        threshold = None if lines is None else lines.open
        if threshold is not None and nbytes > threshold:
            return ReservationTooLargeError(readings.usage, nbytes, desk.reserved_bytes, None, threshold)
        again = readings.retry_after() or readings.config.check_interval
        return MemoryCircuitBreakerError(readings.usage, nbytes, desk.reserved_bytes, again, threshold)


def _loop_bell() -> LoopBell:
    from memguard.breaker._loop import LoopBell  # noqa: PLC0415 - asyncio loads only for who awaits

    return LoopBell()
