"""
Keeping an event loop responsive while a task computes: give way by time, not by count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from types import TracebackType
from typing import Self, TypeVar

from memguard.streams._arguments import check_seconds
from memguard.streams._slices import Slices
from memguard.streams._turns import Turns, running_loop, turns_of_this_loop

T = TypeVar("T")


class LoopPacer:
    """
    Lets a computing task give way by time: ``async with LoopPacer() as pacer``, and in it one of two forms.

    ``async for part in pacer.slices(rows): ...`` hands out lists of rows and costs least; ``await pacer.tick()`` goes
    after each small piece of work. The pacers of one loop share one slice of time and take turns, so that six busy
    tasks delay others no more than one does. Nobody gives way while nobody else has anything to do.

    Args:
        max_block: Seconds that tasks may compute before they give way. 2 ms keep the 99th percentile of the loop's lag
            near 1 ms. What that costs: benchmarks/bench_pacing.py.
    """

    def __init__(self, max_block: float = 0.002) -> None:
        self._max_block = check_seconds(max_block, "max_block")
        self._turns: Turns | None = None
        self._nothing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """
        Begin on the running loop.

        Raises:
            RuntimeError: It is not one of asyncio's.
        """
        self._turns = turns_of_this_loop()
        # Over already: awaiting it costs a third of a coroutine that does nothing.
        self._nothing = running_loop().create_future()
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
            raise RuntimeError(_OUTSIDE)
        if time.perf_counter() - turns.began < self._max_block or not turns.others_wait():
            return self._nothing
        return turns.give_way()

    def slices(self, rows: Iterable[T], size: int | None = None) -> Slices[T]:
        """
        Iterate over lists of *rows*, and give way between two of them when the slice is used up.

        An error of *rows* comes after the rows that it gave before.

        Args:
            rows: Any iterable, not an async one; for those there is :func:`achunked`.
            size: Rows to a list. None takes as many as keep the body of the loop busy for about 100 us; give a number
                where the body awaits something for each list.

        Raises:
            RuntimeError: Outside of ``async with``.
            TypeError: *rows* is no iterable, or *size* no whole number.
            ValueError: *size* is below 1.
        """
        if self._turns is None:
            raise RuntimeError(_OUTSIDE)
        return Slices(rows, size, self._turns, self._max_block)


_OUTSIDE = "use `async with LoopPacer() as pacer` around the work"


async def yield_to_loop() -> None:
    """
    Give way until nothing else is ready on this loop (for eight rounds of it at most).

    Raises:
        RuntimeError: It is not one of asyncio's.
    """
    turns = turns_of_this_loop()
    if turns.others_wait():
        await turns.give_way()
