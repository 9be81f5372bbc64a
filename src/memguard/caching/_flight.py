"""
One computation at a time for each key, however many callers: the others wait for its result.

Rule 1: an error is raised to all who waited for it, to each as one of its own, and forgotten. Who is cancelled or
    interrupted while computing fails alone: one of the others computes.
Rule 2: who would wait for a computation that waits for it, straight or around corners, gets an error instead.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from memguard.caching._keys import Table
from memguard.caching._views import MISSING
from memguard.caching._waits import waiting_for
from memguard.errors import CacheDeadlockError
from memguard.forking import forget_in_child
from memguard.turns import Bell

if TYPE_CHECKING:
    import asyncio

_O = TypeVar("_O", bound=Hashable)
_F = TypeVar("_F", bound="_Flight[Any]")


class _Flight(Generic[_O]):
    """One computation: whose, for a key of which hash, and what came of it."""

    __slots__ = ("error", "hashed", "owner", "stale", "value")

    def __init__(self, owner: _O, hashed: int) -> None:
        self.owner = owner
        self.hashed = hashed
        self.value: Any = MISSING
        self.error: Exception | None = None
        self.stale = False
        """Whether its result is not to be kept any more."""


class _ThreadFlight(_Flight[int]):
    """Waited for by threads."""

    __slots__ = ("landed",)

    def __init__(self, hashed: int) -> None:
        super().__init__(threading.get_ident(), hashed)
        self.landed = Bell()


class _TaskFlight(_Flight["asyncio.Task[Any] | None"]):
    """Waited for by tasks of one loop."""

    __slots__ = ("followers",)

    def __init__(self, owner: asyncio.Task[Any] | None, hashed: int) -> None:
        super().__init__(owner, hashed)
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


def _copied(error: Exception) -> Exception:
    """
    Return an error like *error*, without its traceback.

    One object raised in many callers would gather the frames of all, and keep their locals.
    """
    try:
        fresh = copy.copy(error)
    except Exception:  # it is made from other arguments than it keeps
        fresh = error.__class__.__new__(error.__class__, *error.args)
        fresh.__dict__.update(error.__dict__)
    if type(fresh) is not type(error):
        return error
    fresh.__cause__, fresh.__suppress_context__ = error.__cause__, error.__suppress_context__
    return fresh.with_traceback(None)


def _check_threads(name: str, flight: _Flight[int], me: int) -> None:
    """Raise if *flight* waits for the thread *me*."""
    seen: _Flight[int] = flight
    while seen.owner != me:
        following = _waiting_threads.get(seen.owner)
        if following is None or following is flight:
            return
        seen = following
    raise CacheDeadlockError(name, seen is flight)


def _forget(flying: Table[_F], flight: _F | None) -> None:
    """Let *flight* be of no use to later callers."""
    if flight is not None:
        flight.stale = True
        flying.discard(flight.hashed, flight)


_waiting_threads: dict[int, _Flight[int]] = {}
_computing: dict[Any, list[_TaskFlight]] = {}
"""What each task computes."""


def _followers(task: Any) -> list[asyncio.Future[None]]:
    """Return the futures of those who wait for what *task* computes."""
    return [follower for flight in _computing.get(task, ()) for follower in flight.followers]


class ThreadFlights:
    """The computations of one function, called by threads."""

    def __init__(self, name: str, shelf: Shelf) -> None:
        self._name = name
        self._shelf = shelf
        self._flying: Table[_ThreadFlight] = Table()
        forget_in_child(self)

    def compute(self, key: Any, call: Callable[[], Any]) -> Any:
        """
        Return the result for *key*: of *call*, or of another caller's that is under way.

        Raises:
            CacheDeadlockError: It is this caller's own, further up, or waits for it.
        """
        while True:
            flight = self._flying.get(key)
            if flight is None:
                mine = _ThreadFlight(hash(key))
                flight = self._flying.setdefault(key, mine)
                if flight is mine:
                    return self._fly(key, mine, call)
            self._wait(flight)
            if flight.error is not None:
                raise _copied(flight.error)
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
            mine.error = _copied(error)
            raise
        finally:
            self._flying.discard(mine.hashed, mine)
            mine.landed.ring()

    def _wait(self, flight: _ThreadFlight) -> None:
        me = threading.get_ident()
        before = _waiting_threads.get(me)  # a finalizer may wait inside of a wait
        _waiting_threads[me] = flight
        try:
            _check_threads(self._name, flight, me)
            flight.landed.wait()
        finally:
            if before is None:
                _waiting_threads.pop(me, None)
            else:
                _waiting_threads[me] = before

    def forget(self, key: Any) -> None:
        """Let the computation for *key* that is under way be of no use to later callers."""
        _forget(self._flying, self._flying.get(key))

    def forget_all(self) -> None:
        """The same for all keys."""
        for flight in self._flying.values():
            _forget(self._flying, flight)

    def _forget_threads(self) -> None:
        self._flying = Table()
        _waiting_threads.clear()


class TaskFlights:
    """The computations of one coroutine function; each event loop has its own."""

    def __init__(self, name: str, shelf: Shelf) -> None:
        self._name = name
        self._shelf = shelf
        self._loops: weakref.WeakKeyDictionary[Any, Table[_TaskFlight]] = weakref.WeakKeyDictionary()

    async def compute(self, key: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        """
        Return the result for *key*: of *call*, or of another caller's that is under way.

        Raises:
            CacheDeadlockError: It is this task's own, further up, or waits for it.
        """
        import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

        loop = asyncio.get_running_loop()
        flying = self._loops.get(loop)
        if flying is None:
            flying = self._loops[loop] = Table()
        while True:
            flight = flying.get(key)
            if flight is None:
                return await self._fly(key, flying, _TaskFlight(asyncio.current_task(), hash(key)), call)
            await self._wait(flight, asyncio.current_task(), loop.create_future())
            if flight.error is not None:
                raise _copied(flight.error)
            if flight.value is not MISSING:
                return flight.value

    async def _fly(
        self, key: Any, flying: Table[_TaskFlight], mine: _TaskFlight, call: Callable[[], Awaitable[Any]]
    ) -> Any:
        flying.add(key, mine.hashed, mine)
        computing = _computing.setdefault(mine.owner, [])
        computing.append(mine)
        try:
            # It may have been kept between the miss and now: by whoever took over from one that was cancelled.
            value = self._shelf.find(key)
            if value is MISSING:
                value = await call()
                _land(mine, self._shelf, key, value)
            mine.value = value
            return value
        except Exception as error:
            mine.error = _copied(error)
            raise
        finally:
            flying.discard(mine.hashed, mine)
            computing.remove(mine)
            if not computing:
                _computing.pop(mine.owner, None)
            for follower in mine.followers:
                if not follower.done():
                    follower.set_result(None)

    async def _wait(self, flight: _TaskFlight, me: Any, landed: asyncio.Future[None]) -> None:
        if flight.owner is me:
            raise CacheDeadlockError(self._name, True)
        if flight.owner in waiting_for(me, _followers):
            raise CacheDeadlockError(self._name, False)
        flight.followers.append(landed)
        await landed

    def forget(self, key: Any) -> None:
        """Let the computation for *key* that is under way be of no use to later callers."""
        for flying in list(self._loops.values()):
            _forget(flying, flying.get(key))

    def forget_all(self) -> None:
        """The same for all keys."""
        for flying in list(self._loops.values()):
            for flight in flying.values():
                _forget(flying, flight)
