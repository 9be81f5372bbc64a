"""
Whose turn it is on an event loop.

``await asyncio.sleep(0)`` is not enough: the loop appends I/O and timers it finds *after* the task that gave way, and
their tasks one round later again, so every other event waits for three slices. So a task that gives way is parked
until nothing else is ready. And budgets of one's own add up: six tasks of 2 ms each are 12 ms. So the tasks of one
loop share one slice and take turns. Parking costs about 60 us on a cold cache, so a task looks first whether anybody
would go ahead of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import time
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from collections import deque
from typing import Any

_MOST_ROUNDS = 8
"""Tasks that always are ready must not keep a parked one out."""
_BLIND_ROUNDS = 3
"""Rounds that suffice on a loop that does not show its queue (uvloop)."""


def running_loop() -> asyncio.AbstractEventLoop:
    """
    Return the asyncio loop that runs here.

    Raises:
        RuntimeError: None runs, or this is another kind of loop; the text says so.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        other = _other_library()
        who = f"this runs on {other}" if other else "no asyncio event loop runs in this thread"
        raise RuntimeError(
            f"asyncio is needed, and {who}; use chunked and process_in_chunks in a worker thread instead"
        ) from None


def _other_library() -> str | None:
    """Return what other async library runs this code, if it says so."""
    with contextlib.suppress(Exception):  # not loaded, or it does not know
        return str(sys.modules["sniffio"].current_async_library())
    with contextlib.suppress(Exception):  # not loaded, or of another version
        return "trio" if sys.modules["trio"].lowlevel.in_trio_run() else None
    return None


class _Line(deque["asyncio.Future[None]"]):
    """Those who are parked."""


class Turns:
    """A line of parked tasks on one loop, and when the running slice began."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # No strong reference to the loop, or to what leads to it: it is the key under which this object is known, and a
        # loop that is closed while tasks are parked would stay for ever, with all that they hold.
        self._loop = weakref.ref(loop)
        self._ready: Any = getattr(loop, "_ready", None)
        self._timers, self._selector = _what_is_to_be_seen(loop)
        self._parked: weakref.ref[_Line] | None = None
        """Of whom the loop's next look holds."""
        self._rounds = 0
        self._looking = False
        self.began = float("-inf")

    def others_wait(self) -> bool:
        """
        Tell whether somebody would go ahead if this task gave way; begin a new slice if nobody would.

        True where the loop does not show that.
        """
        if self._timers is None or self._selector is None or self._looking or self._ready:
            return True
        loop = self._loop()
        assert loop is not None
        if self._timers and self._timers[0].when() <= loop.time():
            return True
        # A look only: the selectors of asyncio tell again next time what nobody has dealt with.
        if self._selector.select(0):
            return True
        task = asyncio.current_task(loop)
        if task is None or task.cancelling():
            # A cancellation by a signal handler stands in no queue; it comes where a task waits.
            return True
        self.began = time.perf_counter()
        return False

    async def give_way(self) -> None:
        """Park until nothing else is ready and it is this task's turn."""
        loop = self._loop()
        assert loop is not None
        turn = loop.create_future()
        parked = self._parked() if self._looking and self._parked is not None else None
        if parked is None:
            parked = _Line()
            self._parked = weakref.ref(parked)
            self._looking = True
            self._rounds = 0
            loop.call_soon(self._look, parked)
        parked.append(turn)
        del parked
        await turn
        self.began = time.perf_counter()

    def _look(self, parked: _Line) -> None:
        """Once a round of the loop: hand the turn to the next if nothing else is ready."""
        loop = self._loop()
        while parked and parked[0].done():  # cancelled meanwhile
            parked.popleft()
        if loop is None or not parked:
            self._looking = False
            return
        self._rounds += 1
        if self._idle():
            parked.popleft().set_result(None)
            self._rounds = 0
        if parked:
            loop.call_soon(self._look, parked)
        else:
            # Not once more in vain: the task whose turn it is would see this look as somebody who waits.
            self._looking = False

    def _idle(self) -> bool:
        if self._ready is None:
            return self._rounds > _BLIND_ROUNDS
        # The first round only lets the loop look for I/O and timers.
        return self._rounds > _MOST_ROUNDS or (self._rounds > 1 and not self._ready)


def _what_is_to_be_seen(loop: asyncio.AbstractEventLoop) -> tuple[Any, selectors.BaseSelector | None]:
    """
    Return the timers and the selector of *loop*, or None for what cannot be looked at.

    Only a loop over a selector of the standard library can: looking at a proactor (Windows) takes the events away.
    """
    selector = getattr(loop, "_selector", None)
    if not isinstance(loop, BaseSelectorEventLoop) or not isinstance(selector, selectors.BaseSelector):
        return None, None
    if getattr(loop, "_ready", None) is None:
        return None, None
    return getattr(loop, "_scheduled", None), selector


_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = weakref.WeakKeyDictionary()


def turns_of_this_loop() -> Turns:
    """
    Return what the tasks of the running loop share.

    Raises:
        RuntimeError: No asyncio loop runs here.
    """
    loop = running_loop()
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = Turns(loop)
    return turns
