"""
So many at a time, threads and tasks in one line; the others wait, first come, first served.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Slots:
    """*count* places."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._count = count
        self._line: deque[Callable[[], bool]] = deque()

    @property
    def active(self) -> int:
        """Places taken."""
        return self._count - self._free

    @property
    def waiting(self) -> int:
        """Those in line."""
        return len(self._line)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take a place, waiting for it in this thread."""
        turn = threading.Event()

        def call() -> bool:
            turn.set()
            return True

        if not self._take(call):
            try:
                turn.wait()
            except BaseException:
                if not self._leave_line(call):
                    self._give_back()
                raise
        try:
            yield
        finally:
            self._give_back()

    @asynccontextmanager
    async def ataken(self) -> AsyncIterator[None]:
        """Take a place without blocking the event loop."""
        import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

        loop = asyncio.get_running_loop()
        turn = loop.create_future()

        def arrive() -> None:
            if turn.done():
                self._give_back()  # cancelled meanwhile: the next one's turn
            else:
                turn.set_result(None)

        def call() -> bool:
            try:
                loop.call_soon_threadsafe(arrive)
            except RuntimeError:  # its loop is closed
                return False
            return True

        if not self._take(call):
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._give_back()
                else:
                    self._leave_line(call)
                raise
        try:
            yield
        finally:
            self._give_back()

    def _take(self, call: Callable[[], bool]) -> bool:
        with self._lock:
            if self._free and not self._line:
                self._free -= 1
                return True
            self._line.append(call)
            return False

    def _leave_line(self, call: Callable[[], bool]) -> bool:
        with self._lock:
            if call not in self._line:
                return False
            self._line.remove(call)
            return True

    def _give_back(self) -> None:
        """Hand the place to the next in line, or free it."""
        while True:
            with self._lock:
                if not self._line:
                    self._free += 1
                    return
                call = self._line.popleft()
            if call():
                return


async def in_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """
    Return what *fn* returns, called in a thread of the loop's; wait for its end even if cancelled meanwhile.

    A write that nobody waits for could land after the next writer's, in a chunk that is acknowledged.
    """
    import asyncio  # noqa: PLC0415 - whoever awaits has loaded it

    running = asyncio.ensure_future(asyncio.to_thread(fn, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen: it has nobody to go to
        raise
