"""
Relief on behalf of a breaker: how much is wanted, in this thread or in one of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from memguard.breaker._desk import Desk
from memguard.breaker._queue import Queue, in_event_loop
from memguard.breaker._readings import Readings
from memguard.logs import log
from memguard.relief import Relief
from memguard.sampling import Sampler
from memguard.signals import contained

_SLACK = 32
"""Caches give so small a part of the threshold more than is asked for, so that not each reservation has to ask."""
_TIDY_BYTES = 8 * 1024**2


class Relieving:
    """Has memory given back when somebody asks for more than there is."""

    def __init__(self, desk: Desk, readings: Readings, queue: Queue, relief: Relief) -> None:
        self._desk = desk
        self._readings = readings
        self._queue = queue
        self.relief = relief
        self.forget()

    def forget(self) -> None:
        """Begin anew without what other threads were at."""
        self._thread: threading.Thread | None = None
        self._asked_bytes = 0  # by the last that did not fit: what relief in another thread goes by
        self._asked_at_reading = -1

    @property
    def worth_a_try(self) -> bool:
        """Whether nobody asked since the last reading: relief that was of no use will be of none a moment later."""
        number = self._desk.view.number
        if number == self._asked_at_reading:
            return False
        self._asked_at_reading = number
        return True

    def first(self) -> Callable[[Sampler], bool] | None:
        """Return what relieves ahead of a reading that would open the circuit, if caches can still give way."""
        return self.ahead if contained(self.relief.caches_hold_bytes, what="relief") else None

    def ahead(self, sample: Sampler) -> bool:
        """Run relief in this thread if it may; tell whether a new reading is worth taking."""
        if in_event_loop():
            self.aside(0)
            return False
        return self._attempt(lambda: sample().used_bytes, 0)

    def here(self, nbytes: int) -> bool:
        """Run relief in this thread for somebody who asks for *nbytes*; tell whether a new reading is worth taking."""
        return self._attempt(self._used_bytes, nbytes)

    def aside(self, nbytes: int) -> None:
        """Run relief in a thread of its own, and a reading after it, if it is due and none is running."""
        self._asked_bytes = nbytes
        if contained(self._due, what="relief"):
            self._in_thread(self._relieve_and_serve)

    def tidy(self, kept_bytes: int) -> None:
        """Give back, in a thread of its own, what a burst left with the allocator, once nobody holds bytes."""
        if kept_bytes >= _TIDY_BYTES and not self._desk.queue and contained(self._tidy_due, what="relief"):
            self._in_thread(lambda: self._attempt(self._used_bytes, 0, tidy=True))

    async def elsewhere(self, nbytes: int) -> bool:
        """Run relief in another thread and wait for it; tell whether a new reading is worth taking."""
        from memguard.breaker._loop import LoopBell  # noqa: PLC0415 - asyncio loads only for who awaits

        if not contained(self._due, what="relief"):
            return False
        bell, done = LoopBell(), []

        def relieve() -> None:
            try:
                self._asked_bytes = nbytes
                self._relieve_and_serve()
            finally:
                done.append(True)
                with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile has nobody who waits
                    bell.ring()

        if not _start(threading.Thread(target=relieve, name="memguard-relief", daemon=True)):
            return False
        while not done:
            await bell.wait(1.0)
        return True

    def _attempt(self, read: Callable[[], int], nbytes: int, *, tidy: bool = False) -> bool:
        if tidy:
            return bool(contained(lambda: self.relief.attempt(read, tidy=True), what="relief"))
        return bool(contained(lambda: self.relief.attempt(read, wanted=self._wanted(nbytes)), what="relief"))

    def _wanted(self, nbytes: int) -> Callable[[int], int]:
        """Return what tells how many bytes are too many while *nbytes* are asked for."""

        def wanted(used_bytes: int) -> int:
            lines = self._readings.thresholds()
            taken = max(used_bytes, self._desk.view.floor.nbytes + self._desk.reserved_bytes)
            too_many = taken + nbytes - lines.open if nbytes else 0
            if too_many > 0:
                too_many += lines.open // _SLACK
            return max(too_many, used_bytes - lines.close) if used_bytes >= lines.open else too_many

        return wanted

    def _relieve_and_serve(self) -> None:
        first = self._queue.first()
        waiting = self._asked_bytes if first is None else first.grant.asked_bytes
        if self.here(waiting):
            self._readings.refresh()
            self._queue.serve()

    def _in_thread(self, relieve: Callable[[], object]) -> None:
        running = self._thread
        if running is not None and running.is_alive():
            return
        thread = threading.Thread(target=contained, args=(relieve,), kwargs={"what": "relief"}, daemon=True)
        thread.name = "memguard-relief"
        self._thread = thread
        if not _start(thread):
            self._thread = None

    def _used_bytes(self) -> int:
        return self._readings.sampler().used_bytes

    def _due(self) -> bool:
        return self.relief.due

    def _tidy_due(self) -> bool:
        return self.relief.tidy_due


def _start(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError as error:  # no thread more may be started here, or the interpreter shuts down
        log.warning("memory is not given back in a thread of its own: %s", error)
        return False
    return True
