"""
So many at a time, threads and tasks in one queue; the others wait, first come, first served.

Whoever waits for its sender is idle. A place whose holder has been idle for a second goes to the next in the queue: the
holder stands in it again once there is something to do. So senders that stop keep nobody out.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple, ParamSpec, TypeVar

from memguard.forking import forget_in_child

P = ParamSpec("P")
T = TypeVar("T")
IDLE_SECONDS = 1.0


class Place:
    """
    A place, or the wish for one.

    Attributes:
        idle_since: Since when its holder waits for somebody else; None while it works.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.idle_since: float | None = None

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Be idle meanwhile; afterwards have a place again, waiting for it in this thread."""
        self.idle_since = self._slots.clock()
        yield
        self.idle_since = None
        if not self._slots.has(self):
            self._slots.wait(self)

    @contextlib.asynccontextmanager
    async def aidle(self) -> AsyncIterator[None]:
        """Be idle meanwhile; afterwards have a place again, without blocking the event loop."""
        self.idle_since = self._slots.clock()
        yield
        self.idle_since = None
        if not self._slots.has(self):
            await self._slots.await_(self)


class _Waiting(NamedTuple):
    place: Place
    call: Callable[[], bool]
    """Wakes it; tells whether it is still there."""


class Slots:
    """
    *count* places.

    Args:
        count: How many.
        clock: Seconds, monotonic.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._count = count
        self._forget_threads()
        forget_in_child(self)

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()
        # Known weakly: an exception of a signal handler may keep a holder from giving its place back.
        self._holders: weakref.WeakSet[Place] = weakref.WeakSet()
        self._queue: deque[_Waiting] = deque()

    @property
    def active(self) -> int:
        """Places taken."""
        return len(self._holders)

    @property
    def waiting(self) -> int:
        """Those in the queue."""
        return len(self._queue)

    def has(self, place: Place) -> bool:
        """Tell whether *place* is one."""
        with self._lock:
            return place in self._holders

    @contextlib.contextmanager
    def taken(self) -> Iterator[Place]:
        """Take a place, waiting for it in this thread."""
        place = Place(self)
        try:
            self.wait(place)
            yield place
        finally:
            self._give_back(place)

    @contextlib.asynccontextmanager
    async def ataken(self) -> AsyncIterator[Place]:
        """Take a place without blocking the event loop."""
        place = Place(self)
        try:
            await self.await_(place)
            yield place
        finally:
            self._give_back(place)

    # ----- waiting

    def wait(self, place: Place) -> None:
        """Have *place* be one, waiting for it in this thread."""
        turn = threading.Event()

        def call() -> bool:
            turn.set()
            return True

        waiting = _Waiting(place, call)
        if self._take(waiting):
            return
        try:
            while not turn.wait(IDLE_SECONDS):
                self._reclaim()
        except BaseException:
            self._leave_queue(waiting)
            raise

    async def await_(self, place: Place) -> None:
        """Have *place* be one, without blocking the event loop."""
        import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

        loop = asyncio.get_running_loop()
        turn = asyncio.Event()

        def call() -> bool:
            try:
                loop.call_soon_threadsafe(turn.set)
            except RuntimeError:  # its loop is closed
                return False
            return True

        waiting = _Waiting(place, call)
        if self._take(waiting):
            return
        try:
            while not self.has(place):
                timer = loop.call_later(IDLE_SECONDS, turn.set)
                try:
                    await turn.wait()
                finally:
                    timer.cancel()
                turn.clear()
                self._reclaim()
        except BaseException:
            self._leave_queue(waiting)
            raise

    def _take(self, waiting: _Waiting) -> bool:
        with self._lock:
            if len(self._holders) < self._count and not self._queue:
                self._holders.add(waiting.place)
                return True
            self._queue.append(waiting)
        self._reclaim()
        return self.has(waiting.place)

    def _leave_queue(self, waiting: _Waiting) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._queue.remove(waiting)

    # ----- handing on

    def _give_back(self, place: Place) -> None:
        with self._lock:
            self._holders.discard(place)
        self._hand_on()

    def _reclaim(self) -> None:
        """Take the places of those who have been idle for long, and see who is next."""
        idle_before = self.clock() - IDLE_SECONDS
        with self._lock:
            for place in list(self._holders):
                if place.idle_since is not None and place.idle_since <= idle_before:
                    self._holders.discard(place)
        self._hand_on()

    def _hand_on(self) -> None:
        """Hand what places there are to the first in the queue."""
        while True:
            with self._lock:
                if not self._queue or len(self._holders) >= self._count:
                    return
                waiting = self._queue.popleft()
                self._holders.add(waiting.place)
            if not waiting.call():
                with self._lock:
                    self._holders.discard(waiting.place)


async def in_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """
    Return what *fn* returns, called in a thread of the loop's; wait for its end even if cancelled meanwhile.

    A write that nobody waits for could land after the next writer's, in a chunk that is acknowledged.
    """
    import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

    running = asyncio.ensure_future(asyncio.to_thread(fn, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen: it has nobody to go to
        raise
