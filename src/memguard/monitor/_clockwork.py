"""
A daemon thread that does something now and then, until it is stopped or nobody holds the thing any more.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from memguard.logs import log
from memguard.turns import Bell

_LONGEST_JOIN_SECONDS = 5.0
"""Where a signal handler stops it that interrupted what its thread waits for, a log handler's lock say, all of this
passes; and a container is killed ten seconds after SIGTERM."""
_PAUSE_SECONDS = 1.0
"""After a beat that failed: the next may fail as well, and at once."""


class Beating(Protocol):
    """What has something to do now and then."""

    def beat(self) -> float:
        """Do what is due; return the seconds until something is due again."""
        ...


class Clockwork:
    """
    Calls :meth:`Beating.beat` in a thread of its own, whatever that raises.

    Args:
        thing: Held weakly: a monitor that nobody holds ends its thread.
        name: The thread's.
        at_end: Called when the thing is held by nobody any more.
    """

    def __init__(self, thing: Beating, name: str, at_end: Callable[[], object] = lambda: None) -> None:
        self._done = done = Bell()
        reference = weakref.ref(thing, lambda _: done.ring())
        self._thread = threading.Thread(target=_run, args=(reference, done, at_end), name=name, daemon=True)

    @property
    def running(self) -> bool:
        """Whether the thread lives, or is about to."""
        return not self._done.rung and (self._thread.ident is None or self._thread.is_alive())

    def start(self) -> None:
        """
        Start the thread; if it was stopped before that, it ends at once.

        Raises:
            RuntimeError: No thread can be started.
        """
        try:
            self._thread.start()
        except BaseException:
            # A signal handler may have raised when the thread ran already.
            self._done.ring()
            raise

    def end(self) -> None:
        """Have the thread end, without waiting for that."""
        self._done.ring()

    def stop(self) -> None:
        """End the thread and wait for it, for five seconds at most; from inside itself, without waiting."""
        self._done.ring()
        if self._thread is threading.current_thread():
            return
        try:
            self._thread.join(_LONGEST_JOIN_SECONDS)
        except RuntimeError:
            return  # it was not started yet: this is a signal handler in the middle of that
        if self._thread.is_alive():
            text = "%s: a listener or sampler has not returned for %g s; it is left behind"
            log.warning(text, self._thread.name, _LONGEST_JOIN_SECONDS)


def _run(thing: Callable[[], Beating | None], done: Bell, at_end: Callable[[], object]) -> None:
    while not done.rung:
        seconds = _PAUSE_SECONDS
        try:
            held = thing()
            if held is None:
                break
            seconds = held.beat()
        except BaseException:
            # Also what listeners let out that is meant for others: CancelledError, SystemExit.
            with contextlib.suppress(BaseException):  # nobody is above this thread
                log.exception("memguard: the work of a thread failed; it goes on")
        held = None  # not kept while waiting
        done.wait(seconds)
    if thing() is None:
        at_end()
