"""
A daemon thread that does something now and then, until it is stopped or nobody holds the thing any more.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger("memguard")
_LONGEST_JOIN_SECONDS = 10.0


class Beating(Protocol):
    """What has something to do now and then."""

    def beat(self) -> float:
        """Do what is due; return the seconds until something is due again."""
        ...


class Clockwork:
    """
    Calls :meth:`Beating.beat` in a thread of its own.

    Args:
        thing: Held weakly: a monitor that nobody holds ends its thread.
        name: The thread's.
    """

    def __init__(self, thing: Beating, name: str) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=_run, args=(weakref.ref(thing, lambda _: done.set()), self._done), name=name, daemon=True
        )
        done = self._done
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; from inside itself, without waiting."""
        self._done.set()
        if self._thread is threading.current_thread():
            return
        self._thread.join(_LONGEST_JOIN_SECONDS)
        if self._thread.is_alive():
            _log.warning("%s: a listener or sampler has not returned for 10 s; it is left behind", self._thread.name)


def _run(thing: Callable[[], Beating | None], done: threading.Event) -> None:
    while not done.is_set():
        held = thing()
        if held is None:
            return
        seconds = held.beat()
        del held  # not kept while waiting
        done.wait(seconds)
