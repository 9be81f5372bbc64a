"""
The reservation of one call whose cost is learned: it waits for its turn, books what is known, and is measured.

A guarded function inside another one neither waits nor is measured: its memory is part of the outer call's.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from memguard.breaker._learning import Call, Gate, Record
from memguard.breaker._queue import ThreadBell, in_event_loop
from memguard.breaker._reservation import Reservation
from memguard.policy import features
from memguard.signals import contained

_POLL_SECONDS = 0.25

_inside: contextvars.ContextVar[weakref.ref[Call] | None] = contextvars.ContextVar(
    "memguard_learned_call", default=None
)
"""The call around here. Where an exception of a signal handler kept it from being reset, it has ended all the same."""


class LearnedReservation:
    """A reservation whose size is learned; entered, it waits for its turn, and measures what is run in it if alone."""

    def __init__(
        self,
        gate: Gate,
        reserve: Callable[..., Reservation],
        record: Record,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        timeout: float | None,
        *,
        lent_here: Callable[[], int | None],
        waits: bool,
    ) -> None:
        self._waits = waits
        self._lent_here = lent_here
        self._gate = gate
        self._reserve = reserve
        self._record = record
        self._arguments = arguments
        self._timeout = timeout
        self._call: Call | None = None
        self._reservation: Reservation | None = None
        self._token: contextvars.Token[weakref.ref[Call] | None] | None = None

    def __enter__(self) -> Self:
        if self._timeout != 0 and in_event_loop():
            raise RuntimeError("a plain function would block the event loop while it waits; guard an async one")
        deadline = _deadline(self._timeout)
        call = self._begin()
        try:
            if call is not None:
                self._pass(call, deadline)
            self._book(call, deadline).__enter__()
            self._started(call)
        except BaseException:
            self._undo()
            raise
        return self

    async def __aenter__(self) -> Self:
        deadline = _deadline(self._timeout)
        call = self._begin()
        try:
            if call is not None:
                await self._apass(call, deadline)
            await self._book(call, deadline).__aenter__()
            self._started(call)
        except BaseException:
            self._undo()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.deactivate()
        call = self._call
        try:
            if call is not None and call.runs:
                # A generator that is closed early has done what it did.
                failed = error is not None and not isinstance(error, GeneratorExit)
                contained(lambda: self._gate.end(call, failed=failed), what="measuring")
        finally:
            self._undo()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def activate(self) -> None:
        """Make it the one around what runs now."""
        assert self._reservation is not None
        self._reservation.activate()
        if self._call is not None:
            self._token = _inside.set(weakref.ref(self._call))

    def deactivate(self) -> None:
        """Undo :meth:`activate`."""
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(
                ValueError, RuntimeError, LookupError
            ):  # left in another context than it was entered in
                _inside.reset(token)
        if self._reservation is not None:
            self._reservation.deactivate()

    def _begin(self) -> Call | None:
        """Return the call, or None where it runs inside another one."""
        around = _inside.get()
        outer = None if around is None else around()
        if outer is not None and outer.runs:
            return None
        asked = features(*self._arguments)
        self._arguments = ((), {})  # what the function got is not ours to keep alive
        self._call = Call(self._record, asked)
        self._call.waits = self._waits
        self._call.lent_bytes = self._lent_here()
        return self._call

    def _pass(self, call: Call, deadline: float | None) -> None:
        gate = self._gate
        if gate.is_first(None) and gate.passes(call):
            return
        bell = ThreadBell()
        with gate.standing(bell) as standing:
            while not (gate.is_first(standing) and gate.passes(call)):
                bell.wait(self._patience(deadline))

    async def _apass(self, call: Call, deadline: float | None) -> None:
        gate = self._gate
        if gate.is_first(None) and gate.passes(call):
            return
        from memguard.breaker._loop import LoopBell  # noqa: PLC0415 - asyncio loads only for who awaits

        bell = LoopBell()
        with gate.standing(bell) as standing:
            while not (gate.is_first(standing) and gate.passes(call)):
                await bell.wait(self._patience(deadline))

    def _patience(self, deadline: float | None) -> float:
        """Return how long to wait before the next look; raise the breaker's refusal where the time is up."""
        if deadline is None:
            return _POLL_SECONDS
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._reserve(0).refusal()
        return min(_POLL_SECONDS, left)

    def _book(self, call: Call | None, deadline: float | None) -> Reservation:
        nbytes = 0 if call is None else self._gate.book(call)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self._timeout == 0:
            left = 0.0
        self._reservation = self._reserve(nbytes, timeout=left)
        return self._reservation

    def _started(self, call: Call | None) -> None:
        if call is not None:
            contained(lambda: self._gate.begin(call), what="measuring")

    def _undo(self) -> None:
        """Be out, whatever comes in between: an error that is kept may keep this call for ever."""
        call = self._call
        try:
            if call is not None:
                call.runs = False
                self._gate.left(call)
        finally:
            if self._reservation is not None:
                self._reservation.release()


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
