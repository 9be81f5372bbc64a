"""
Telling listeners that something changed. No listener can break the guard, and none is called under a lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from memguard.forking import forget_in_child
from memguard.interrupts import is_interrupt
from memguard.logs import log
from memguard.turns import Claim, Turn

_T = TypeVar("_T")
_R = TypeVar("_R")


class Signal(Generic[_T]):
    """
    A list of callbacks for one kind of event. Connect and disconnect from any thread, and at any moment.

    A callback runs in the thread that noticed the change, one event after the other, and is kept until it is
    disconnected. One that raises is logged; the others still hear of the event.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._listeners: tuple[_Listener[_T], ...] = ()
        forget_in_child(self)

    def connect(self, callback: Callable[[_T], object]) -> Callable[[], None]:
        """
        Call *callback* with each event from now on.

        Returns:
            A function that disconnects it; a second call of that does nothing.

        Raises:
            TypeError: *callback* cannot be called.
        """
        if not callable(callback):
            raise TypeError(f"{callback!r} cannot be called; connect a function of one event")
        # Its own cell: the same function connected twice is heard twice and disconnected one by one.
        mine = _Listener(callback)
        self._change(lambda listeners: (*listeners, mine))
        return lambda: self._change(lambda listeners: tuple(kept for kept in listeners if kept is not mine))

    def announce(self, event: _T) -> None:
        """Tell every listener of *event*."""
        for listener in self._listeners:
            contained(listener.callback, event, what=f"{self._name}: listener")

    def _change(self, changed: Callable[[tuple[_Listener[_T], ...]], tuple[_Listener[_T], ...]]) -> None:
        while True:
            before = self._listeners
            after = changed(before)
            # A straight line: neither a signal handler nor a finalizer that connects comes in between.
            with self._lock:
                done = self._listeners is before
                if done:
                    self._listeners = after
            if done:
                return

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()


class _Listener(Generic[_T]):
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[_T], object]) -> None:
        self.callback = callback


class Outbox(Generic[_T]):
    """
    Events on their way to listeners: put in at any moment, handed out without a lock, in order, one at a time.

    Args:
        tell: Hears of each event, in whichever thread is at it.
    """

    def __init__(self, tell: Callable[[_T], object]) -> None:
        self._tell = tell
        self._events: deque[_T] = deque()
        self._turn = Turn()

    def put(self, event: _T) -> None:
        """Keep *event* for :meth:`deliver`."""
        self._events.append(event)

    def deliver(self) -> None:
        """Hand out what there is, unless another thread is at it: then that one goes on with ours."""
        while self._events:
            claim = Claim(self._turn)
            try:
                if not claim.take():
                    return
                while self._events:
                    self._tell(self._events.popleft())
            finally:
                claim.give_back()


def contained(fn: Callable[..., _R], *args: object, what: str) -> _R | None:
    """
    Call *fn*, somebody else's code; where it raises, log that and return None.

    ``SystemExit`` and a task's cancellation that it lets out concern its own work, not whoever tells it something.
    What an operating system's signal raises passes (see :mod:`memguard.interrupts`): it means the program.
    """
    try:
        return fn(*args)
    except BaseException as error:
        if is_interrupt(error):
            raise
        log.exception("%s %r failed", what, fn)
        return None
