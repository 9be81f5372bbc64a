"""
An event of an event loop that threads may set. Imports asyncio, so it is itself imported only by who awaits.
"""

from __future__ import annotations

import asyncio


class LoopEvent:
    """An event that one task of the running loop waits for, and that any thread may set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """
        Wake the task.

        Raises:
            RuntimeError: Its loop is closed.
        """
        self._loop.call_soon_threadsafe(self._event.set)

    def clear(self) -> None:
        """Wait anew from now on."""
        self._event.clear()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until it is set, or *seconds* are over."""
        if seconds is None:
            await self._event.wait()
            return
        timer = self._loop.call_later(seconds, self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()
