"""
What wakes a task of an event loop, from any thread. Imports asyncio, so it is itself imported only by who awaits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from memguard.breaker._queue import Presence


class LoopBell:
    """Wakes one task of the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._event = asyncio.Event()

    def ring(self) -> None:
        """
        Wake the task.

        Raises:
            RuntimeError: Its loop is closed.
        """
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> None:
        """Wait until it rings, or *seconds* are over."""
        timer = self._loop.call_later(seconds, self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()
            self._event.clear()

    def presence(self) -> Presence:
        """Tell whether the task can go on: its loop may be closed, or not be running just now."""
        if self._loop.is_closed() or (self._task is not None and self._task.done()):
            return "gone"
        return "here" if self._loop.is_running() else "resting"
