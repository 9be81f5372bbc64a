"""
Telling listeners that something changed. No listener can break the guard, and none is called under a lock.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from memguard.forking import forget_in_child
from memguard.turns import Claim, Turn

_T = TypeVar("_T")
_R = TypeVar("_R")
_log = logging.getLogger("memguard")


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
    Only ``KeyboardInterrupt`` passes, a person at a keyboard who means the program; and what a signal handler raised
    that came in between, a time limit for one: it is not *fn* that failed.
    """
    try:
        return fn(*args)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if _is_of_signal_handler(error):
            raise
        _log_failure(what, fn)
        return None


def _is_of_signal_handler(error: BaseException) -> bool:
    """Tell whether a signal handler of the program raised *error*."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    traceback = error.__traceback__
    while traceback is not None and handlers:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False


def _code_of(handler: object) -> object:
    """Return the code that runs when *handler* is called; None if that is not Python's."""
    if callable(handler) and not hasattr(handler, "__code__") and not hasattr(handler, "__func__"):
        handler = type(handler).__call__
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


def _log_failure(what: str, fn: object) -> None:
    try:
        _log.exception("%s %r failed", what, fn)
    except Exception:  # noqa: BLE001, S110, RUF100 - a broken log handler or repr must not do what fn may not
        pass
