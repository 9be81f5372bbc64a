"""
Telling listeners that something changed. No listener can break the guard, and none is called under a lock.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
_log = logging.getLogger("memguard")


class Signal(Generic[_T]):
    """
    A list of callbacks for one kind of event.

    A callback runs in the thread that noticed the change, one event after the other, and is kept until it is
    disconnected. One that raises is logged; the others still hear of the event.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._listeners: tuple[Callable[[_T], object], ...] = ()

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
        def listener(event: _T) -> object:
            return callback(event)

        listener.__wrapped__ = callback  # type: ignore[attr-defined]
        self._listeners = (*self._listeners, listener)

        def disconnect() -> None:
            self._listeners = tuple(kept for kept in self._listeners if kept is not listener)

        return disconnect

    def announce(self, event: _T) -> None:
        """Tell every listener of *event*."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                # A broken dashboard must not stop the guard: say so, go on.
                _log.exception("%s: listener %r failed", self._name, listener.__wrapped__)  # type: ignore[attr-defined]


class Outbox(Generic[_T]):
    """
    Events on their way to listeners: put in under somebody's lock, handed out without it, in order, one at a time.

    Args:
        tell: Hears of each event, in whichever thread is at it.
    """

    def __init__(self, tell: Callable[[_T], object]) -> None:
        self._tell = tell
        self._events: deque[_T] = deque()
        self._telling = threading.Lock()

    def put(self, event: _T) -> None:
        """Keep *event* for :meth:`deliver`."""
        self._events.append(event)

    def deliver(self) -> None:
        """Hand out what there is, unless another thread is at it: then that one goes on with ours."""
        while self._events:
            if not self._telling.acquire(blocking=False):
                return
            try:
                while self._events:
                    self._tell(self._events.popleft())
            finally:
                self._telling.release()
