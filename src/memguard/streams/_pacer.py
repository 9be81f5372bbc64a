"""
Keeping an event loop responsive while a task computes: give way by time, not by count.

``await asyncio.sleep(0)`` is not enough: the loop appends I/O and timers it finds *after* the task that gave way, and
their tasks one round later again, so every other event waits for three slices. So a task that gives way is parked
until nothing else is ready. And budgets of one's own add up: six tasks of 2 ms each are 12 ms. So the tasks of one
loop share one slice and take turns.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self

_MOST_ROUNDS = 8
"""Tasks that always are ready must not keep a parked one out."""
_BLIND_ROUNDS = 3
"""Rounds that suffice on a loop that does not show its queue (uvloop)."""


class _Turns:
    """Whose turn it is on one loop: a line of parked tasks, and when the running slice began."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop holds this object while somebody waits; a strong reference back would keep both.
        self._loop = weakref.ref(loop)
        self._ready: Any = getattr(loop, "_ready", None)
        self._parked: deque[asyncio.Future[None]] = deque()
        self._rounds = 0
        self._looking = False
        self.began = float("-inf")

    async def give_way(self) -> None:
        """Park until nothing else is ready and it is this task's turn."""
        loop = self._loop()
        assert loop is not None
        turn = loop.create_future()
        self._parked.append(turn)
        if not self._looking:
            self._looking = True
            self._rounds = 0
            loop.call_soon(self._look)
        await turn
        self.began = time.perf_counter()

    def _look(self) -> None:
        """Once a round of the loop: hand the turn to the next if nothing else is ready."""
        loop = self._loop()
        while self._parked and self._parked[0].done():  # cancelled meanwhile
            self._parked.popleft()
        if loop is None or not self._parked:
            self._looking = False
            return
        self._rounds += 1
        if self._idle():
            self._parked.popleft().set_result(None)
            self._rounds = 0
        loop.call_soon(self._look)

    def _idle(self) -> bool:
        if self._ready is None:
            return self._rounds > _BLIND_ROUNDS
        # The first round only lets the loop look for I/O and timers.
        return self._rounds > _MOST_ROUNDS or (self._rounds > 1 and not self._ready)


_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = weakref.WeakKeyDictionary()


def _turns_of_this_loop() -> _Turns:
    loop = asyncio.get_running_loop()
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = _Turns(loop)
    return turns


def check_max_block(max_block: float) -> float:
    """Return *max_block* if it is a number of seconds above 0."""
    if isinstance(max_block, bool) or not isinstance(max_block, (int, float)):
        raise TypeError(f"max_block is a number of seconds, got {max_block!r}")
    if not 0 < max_block < float("inf"):
        raise ValueError(f"max_block is a number of seconds above 0, got {max_block!r}")
    return float(max_block)


class LoopPacer:
    """
    Lets a computing task give way by time: ``async with LoopPacer() as pacer: ... await pacer.tick()``.

    The pacers of one loop share one slice of time and take turns, so that six busy tasks delay others no more than
    one does.

    Args:
        max_block: Seconds that tasks may compute before they give way. 2 ms keep the 99th percentile of the loop's lag
            near 1 ms. What that costs: benchmarks/bench_pacing.py.
    """

    def __init__(self, max_block: float = 0.002) -> None:
        self._max_block = check_max_block(max_block)
        self._turns: _Turns | None = None
        self._nothing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin on the running loop."""
        self._turns = _turns_of_this_loop()
        # Over already: awaiting it costs a third of a coroutine that does nothing.
        self._nothing = asyncio.get_running_loop().create_future()
        self._nothing.set_result(None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End. Nothing is held in between."""
        self._turns = self._nothing = None

    def tick(self) -> Awaitable[None]:
        """
        Give way if the slice is used up; cheap if it is not. Call it after each small piece of work.

        Raises:
            RuntimeError: Outside of ``async with``.
        """
        turns = self._turns
        if turns is None or self._nothing is None:
            raise RuntimeError("use `async with LoopPacer() as pacer` around the work")
        if time.perf_counter() - turns.began < self._max_block:
            return self._nothing
        return turns.give_way()


async def yield_to_loop() -> None:
    """Give way until nothing else is ready on this loop (for eight rounds of it at most)."""
    await _turns_of_this_loop().give_way()
