"""
One computation at a time for each key, however many callers: the others wait for its result.

Rule 1: an error is raised to all who waited for it, and forgotten. Who is cancelled or interrupted while computing
    fails alone: one of the others computes.
Rule 2: who would wait for a computation that waits for it, straight or around corners, gets an error instead.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from memguard.caching._views import MISSING
from memguard.errors import CacheDeadlockError

if TYPE_CHECKING:
    import asyncio

_O = TypeVar("_O", bound=Hashable)


class _Flight(Generic[_O]):
    """One computation: whose, and what came of it."""

    __slots__ = ("error", "owner", "stale", "value")

    def __init__(self, owner: _O) -> None:
        self.owner = owner
        self.value: Any = MISSING
        self.error: Exception | None = None
        self.stale = False
        """Whether its result is not to be kept any more."""


class _ThreadFlight(_Flight[int]):
    """Waited for by threads: the lock is free once it has landed."""

    __slots__ = ("flying",)

    def __init__(self) -> None:
        super().__init__(threading.get_ident())
        self.flying = threading.Lock()
        self.flying.acquire()


class _TaskFlight(_Flight["asyncio.Task[Any] | None"]):
    """Waited for by tasks of one loop."""

    __slots__ = ("followers",)

    def __init__(self, owner: asyncio.Task[Any] | None) -> None:
        super().__init__(owner)
        self.followers: list[asyncio.Future[None]] = []


class Shelf:
    """
    Where results are kept.

    Args:
        find: Returns what is kept for a key, or MISSING.
        keep: Keeps a result.
        drop: Lets go of it.
    """

    __slots__ = ("drop", "find", "keep")

    def __init__(
        self, find: Callable[[Any], Any], keep: Callable[[Any, Any], object], drop: Callable[[Any], object]
    ) -> None:
        self.find = find
        self.keep = keep
        self.drop = drop


def _land(flight: _Flight[Any], shelf: Shelf, key: Any, value: Any) -> None:
    """Keep *value*, unless somebody said meanwhile that it is out of date."""
    flight.value = value
    if not flight.stale:
        shelf.keep(key, value)
    if flight.stale:  # also if it became so just now
        shelf.drop(key)


def _check(name: str, flight: _Flight[_O], me: _O, waiting: dict[_O, _Flight[_O]]) -> None:
    """Raise if *flight* waits for *me*."""
    seen = flight
    while seen.owner != me:
        following = waiting.get(seen.owner)
        if following is None or following is flight:
            return
        seen = following
    raise CacheDeadlockError(name, seen is flight)


_waiting_threads: dict[int, _Flight[int]] = {}
_waiting_tasks: dict[Any, _Flight[Any]] = {}


class ThreadFlights:
    """The computations of one function, called by threads."""

    def __init__(self, name: str, shelf: Shelf) -> None:
        self._name = name
        self._shelf = shelf
        self._flying: dict[Any, _ThreadFlight] = {}

    def compute(self, key: Any, call: Callable[[], Any]) -> Any:
        """
        Return the result for *key*: of *call*, or of another caller's that is under way.

        Raises:
            CacheDeadlockError: It is this caller's own, further up, or waits for it.
        """
        while True:
            flight = self._flying.get(key)
            if flight is None:
                mine = _ThreadFlight()
                flight = self._flying.setdefault(key, mine)
                if flight is mine:
                    return self._fly(key, mine, call)
            self._wait(flight)
            if flight.error is not None:
                raise flight.error
            if flight.value is not MISSING:
                return flight.value

    def _fly(self, key: Any, mine: _ThreadFlight, call: Callable[[], Any]) -> Any:
        try:
            # It may have been kept between the miss and now.
            value = self._shelf.find(key)
            if value is MISSING:
                value = call()
                _land(mine, self._shelf, key, value)
            mine.value = value
            return value
        except Exception as error:
            mine.error = error
            raise
        finally:
            if self._flying.get(key) is mine:
                del self._flying[key]
            mine.flying.release()

    def _wait(self, flight: _ThreadFlight) -> None:
        me = threading.get_ident()
        before = _waiting_threads.get(me)  # a finalizer may wait inside of a wait
        _waiting_threads[me] = flight
        try:
            _check(self._name, flight, me, _waiting_threads)
            with flight.flying:
                pass
        finally:
            if before is None:
                _waiting_threads.pop(me, None)
            else:
                _waiting_threads[me] = before

    def forget(self, key: Any) -> None:
        """Let the computation for *key* that is under way be of no use to later callers."""
        flight = self._flying.pop(key, None)
        if flight is not None:
            flight.stale = True

    def forget_all(self) -> None:
        """The same for all keys."""
        for key in list(self._flying):
            self.forget(key)

    def forget_threads(self) -> None:
        """Begin anew in a forked child: whoever computes is not there."""
        self._flying = {}
        _waiting_threads.clear()


class TaskFlights:
    """The computations of one coroutine function; each event loop has its own."""

    def __init__(self, name: str, shelf: Shelf) -> None:
        self._name = name
        self._shelf = shelf
        self._loops: weakref.WeakKeyDictionary[Any, dict[Any, _TaskFlight]] = weakref.WeakKeyDictionary()

    async def compute(self, key: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        """
        Return the result for *key*: of *call*, or of another caller's that is under way.

        Raises:
            CacheDeadlockError: It is this task's own, further up, or waits for it.
        """
        import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

        loop = asyncio.get_running_loop()
        flying = self._loops.setdefault(loop, {})
        while True:
            flight = flying.get(key)
            if flight is None:
                return await self._fly(key, flying, _TaskFlight(asyncio.current_task()), call)
            await self._wait(flight, asyncio.current_task(), loop.create_future())
            if flight.error is not None:
                raise flight.error
            if flight.value is not MISSING:
                return flight.value

    async def _fly(
        self, key: Any, flying: dict[Any, _TaskFlight], mine: _TaskFlight, call: Callable[[], Awaitable[Any]]
    ) -> Any:
        flying[key] = mine
        try:
            # It may have been kept between the miss and now: by whoever took over from one that was cancelled.
            value = self._shelf.find(key)
            if value is MISSING:
                value = await call()
                _land(mine, self._shelf, key, value)
            mine.value = value
            return value
        except Exception as error:
            mine.error = error
            raise
        finally:
            if flying.get(key) is mine:
                del flying[key]
            for follower in mine.followers:
                if not follower.done():
                    follower.set_result(None)

    async def _wait(self, flight: _TaskFlight, me: Any, landed: asyncio.Future[None]) -> None:
        _waiting_tasks[me] = flight
        try:
            _check(self._name, flight, me, _waiting_tasks)
            flight.followers.append(landed)
            await landed
        finally:
            _waiting_tasks.pop(me, None)

    def forget(self, key: Any) -> None:
        """Let the computation for *key* that is under way be of no use to later callers."""
        for flying in list(self._loops.values()):
            flight = flying.pop(key, None)
            if flight is not None:
                flight.stale = True

    def forget_all(self) -> None:
        """The same for all keys."""
        for flying in list(self._loops.values()):
            for key in list(flying):
                self.forget(key)

    def forget_threads(self) -> None:
        """Nothing: a forked child's loop is another."""
