"""
What one chunk holds while it runs.

A chunk's function is called in the scope of its own hold, so that what it reserves inside draws from that. The holds
themselves are entered by a plain call, which makes no scope: chunks that run at once are no parents of each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar, cast

from memguard.values import Hold

R = TypeVar("R")


class Held:
    """A hold, or nothing where asking was enough."""

    def __init__(self, hold: Hold | None) -> None:
        self._hold = hold

    def enter(self) -> Self:
        """Book the bytes."""
        if self._hold is not None:
            self._hold.__enter__()
        return self

    async def aenter(self) -> Self:
        """Book the bytes, without blocking the loop while waiting."""
        if self._hold is not None:
            await self._hold.__aenter__()
        return self

    def leave(self) -> None:
        """Give the bytes back; where they were entered."""
        if self._hold is not None:
            self._hold.__exit__(None, None, None)

    async def aleave(self) -> None:
        """Give the bytes back; where they were entered."""
        if self._hold is not None:
            await self._hold.__aexit__(None, None, None)

    def release(self) -> None:
        """Give the bytes back, from any thread; leaving follows."""
        if self._hold is not None:
            self._hold.release()

    def run(self, fn: Callable[..., R], *args: Any) -> R:
        """Call *fn* in the scope of the hold, in any thread; a gate of the user's own may have none."""
        run = getattr(self._hold, "run", None)
        return fn(*args) if run is None else cast("R", run(fn, *args))

    async def arun(self, fn: Callable[..., Awaitable[R]], *args: Any) -> R:
        """Await *fn* in the scope of the hold."""
        arun = getattr(self._hold, "arun", None)
        return await (fn(*args) if arun is None else arun(fn, *args))
