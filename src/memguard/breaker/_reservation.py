"""
Bytes that one caller holds, from entering to leaving.

What is reserved inside the body of a ``with`` draws from that reservation first: so a middleware, a guard and a chunk
in it do not book the same bytes three times, nor wait for each other. Siblings never nest: a reservation that is
entered by calling, as an ExitStack or a loop that submits jobs does, has no body, and neither has one that is acquired.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import sys
from collections.abc import Awaitable, Callable
from types import FrameType, MethodType, TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from memguard.breaker._admission import Admission
from memguard.breaker._desk import ENTERED, HELD, NEW, OVER, WAITING, Desk, Grant
from memguard.breaker._queue import in_event_loop
from memguard.errors import MemoryCircuitBreakerError
from memguard.policy import cost_bytes
from memguard.units import ByteSize

P = ParamSpec("P")
R = TypeVar("R")

_around: contextvars.ContextVar[Grant | None] = contextvars.ContextVar("memguard_reservation", default=None)
_MOST_DROPPED = 10
_STATES = {NEW: "new", ENTERED: "entered", WAITING: "waiting", HELD: "held", OVER: "released"}


_STEPWISE = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def _is_context_manager(frame: FrameType) -> bool:
    """Tell whether the generator that runs in *frame* is stepped through by contextlib."""
    stepper = frame.f_back
    return stepper is not None and stepper.f_globals is vars(contextlib)


class _LookedUp:
    """
    ``__exit__`` of a reservation, which notes that it was looked up.

    A ``with`` statement looks it up before it calls ``__enter__``; whoever calls ``__enter__`` does not. So a
    reservation knows whether it has a body.

    The body of a generator is none: it shares its caller's context, so that what the caller does between two steps
    would draw from it. That of one which :mod:`contextlib` makes a context manager of is, since there it is the
    caller's.

    See:
        The Python language reference, 8.5 "The with statement", steps 2 to 4.
    """

    def __init__(self, leave: Callable[..., Any]) -> None:
        self._leave = leave

    def __get__(self, held: Any, owner: type) -> Any:
        if held is None:
            return self._leave
        frame = sys._getframe(1)
        held._has_body = not frame.f_code.co_flags & _STEPWISE or _is_context_manager(frame)
        return MethodType(self._leave, held)


def _ended() -> Grant:
    grant = Grant(Grant)
    grant.books = None
    grant.asked_bytes = grant.nbytes = grant.drawn_bytes = 0
    grant.state = OVER
    grant.on_ramp = False
    grant.outer = grant.around = None
    return grant


_OVER = _ended()
"""What stands for the grant of any reservation that is over."""


class Reservation:
    """
    Bytes set aside; inert until entered, with ``with`` or ``async with``.

    Made by :meth:`MemoryCircuitBreaker.reserve` and :meth:`MemoryCircuitBreaker.acquire`. What it holds is given back
    when it is left, by :meth:`release`, or at the latest when it is garbage.
    """

    __slots__ = (
        "__weakref__",
        "_admission",
        "_desk",
        "_grant",
        "_has_body",
        "_is_acquired",
        "_nbytes",
        "_timeout",
        "_token",
    )

    def __init__(self, desk: Desk, admission: Admission, nbytes: int, timeout: float | None) -> None:
        self._desk = desk
        self._admission = admission
        self._timeout = timeout
        self._has_body = False
        self._is_acquired = False
        self._token: contextvars.Token[Grant | None] | None = None
        self._grant = grant = Grant(self, desk.note_dropped)
        grant.books = desk.books
        grant.asked_bytes = nbytes
        grant.nbytes = grant.drawn_bytes = grant.state = 0
        grant.on_ramp = False
        grant.outer = None
        grant.around = None  # the last: see Desk.sweep

    @property
    def nbytes(self) -> int:
        """Bytes asked for."""
        return self._nbytes if self._grant is _OVER else self._grant.asked_bytes

    def __enter__(self) -> Self:
        """
        Book the bytes.

        Raises:
            MemoryCircuitBreakerError: They do not fit in time.
            RuntimeError: It would wait on an event loop's thread, or was entered before.
        """
        if self._timeout != 0 and not self._is_acquired and in_event_loop():
            raise RuntimeError("a plain `with` would block the event loop while it waits; use `async with`")
        desk, grant = self._desk, self._grant
        around = _around.get()
        if around is not None:
            self._nest(around)
        if not (desk.clock() < desk.stale_at and desk.take(grant)):
            if self._is_acquired and grant.state == HELD:
                return self
            self._take()
            grant = self._grant
        if self._has_body:
            self._token = _around.set(grant)
        return self

    async def __aenter__(self) -> Self:
        """
        Book the bytes as ``with`` does, without blocking the event loop while waiting.

        Raises:
            MemoryCircuitBreakerError: They do not fit in time.
            RuntimeError: No event loop of asyncio runs here, or it was entered before.
        """
        desk, grant = self._desk, self._grant
        around = _around.get()
        if around is not None:
            self._nest(around)
        if not (desk.clock() < desk.stale_at and desk.take(grant)):
            if self._is_acquired and grant.state == HELD:
                return self
            await self._atake()
            grant = self._grant
        if self._has_body:
            self._token = _around.set(grant)
        return self

    def _leave(self, *error: object) -> None:  # noqa: ARG002 - what a `with` statement passes
        token = self._token
        if token is not None:
            self._token = None
            try:
                _around.reset(token)
            except (ValueError, RuntimeError, LookupError):
                # Left in another context than it was entered in (a finalized async generator), or a second time by
                # something that came in between: there is nothing to undo here.
                pass
        desk, grant = self._desk, self._grant
        back = desk.leave(grant)
        if grant is not _OVER:
            self._nbytes = grant.asked_bytes
            self._grant = _OVER  # so that the desk does not hear of it once more when this is garbage
            del grant
        if desk.queue or desk.zeros:
            self._admission.gave_back(back)

    async def _aleave(self, *error: object) -> None:
        self._leave(*error)

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None:
            """Give the bytes back."""

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None:
            """Give the bytes back."""

    else:
        __exit__ = _LookedUp(_leave)
        __aexit__ = _LookedUp(_aleave)

    def release(self) -> None:
        """
        Give the bytes back now; a second call does nothing. From any thread, finalizer or signal handler.

        Bytes that a nested one drew follow when that is left.
        """
        grant = self._grant
        if grant.state in (ENTERED, WAITING, HELD):
            self._admission.leave(grant)
            self._nbytes = grant.asked_bytes
            self._grant = _OVER
            del grant  # before this method's `self`, which may be the last that holds it

    def resize(self, nbytes: ByteSize) -> None:
        """
        Hold *nbytes* from now on. Growing does not wait, and draws from the reservation around it first.

        Raises:
            MemoryCircuitBreakerError: The growth does not fit; what was held stays held.
            RuntimeError: It is not held.
            ValueError: It would shrink below what nested reservations draw from it.
        """
        size = cost_bytes(nbytes)
        grant = self._grant
        if grant.state != HELD:
            raise RuntimeError(f"only a held reservation can be resized; this one is {self._state}")
        growth = size - grant.asked_bytes
        if growth > 0:
            if not self._admission.grow(grant, size):
                raise RuntimeError(f"it was released while it grew to {size} bytes")
        elif growth < 0:
            missing = self._admission.shrink(grant, size)
            if missing:
                raise ValueError(f"nested reservations draw from it; {size} bytes are {missing} too few for them")

    def run(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Call *fn* in the scope of this reservation, in whichever thread: what it reserves draws from this one first.

        Raises:
            RuntimeError: It is not held.
        """
        token = _around.set(self._held())
        try:
            return fn(*args, **kwargs)
        finally:
            _reset(token)

    async def arun(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Call and await *fn* in the scope of this reservation.

        Raises:
            RuntimeError: It is not held.
        """
        token = _around.set(self._held())
        try:
            return await fn(*args, **kwargs)
        finally:
            _reset(token)

    def __repr__(self) -> str:
        return f"<Reservation of {self.nbytes} bytes, {self._state}>"

    # ----- for the package

    def acquired(self) -> Self:
        """Return it held, without a scope; a ``with`` around it only gives back."""
        self.__enter__()
        self._is_acquired = True
        return self

    async def aacquired(self) -> Self:
        """Return it held, without a scope and without blocking the event loop."""
        await self.__aenter__()
        self._is_acquired = True
        return self

    def refusal(self) -> MemoryCircuitBreakerError:
        """Return the error of one that was not given in time, and count it."""
        return self._admission.refusal(self.nbytes)

    def activate(self) -> None:
        """Make it the one that reservations of this context draw from."""
        self._token = _around.set(self._grant)

    def deactivate(self) -> None:
        """Undo :meth:`activate`."""
        token, self._token = self._token, None
        if token is not None:
            _reset(token)

    @property
    def _state(self) -> str:
        return _STATES[self._grant.state]

    def _nest(self, around: Grant) -> None:
        """Draw from the reservation of this breaker that is held around here, if there is one."""
        grant = self._grant
        if grant.state != NEW:
            return
        if len(self._desk.dropped) > _MOST_DROPPED:
            self._desk.sweep()  # a grant that lent outlives its reservation, and is noted as dropped
        grant.around = around
        grant.outer = outer = _nearest(around, self._desk)
        if outer is not None and outer.outer is not None and outer.nbytes < grant.asked_bytes:
            self._desk.gather(outer, grant.asked_bytes)

    def _take(self) -> None:
        grant = self._claimed()
        try:
            self._admission.enter(grant, self._timeout)
        except BaseException:
            self._desk.leave(grant)
            raise

    async def _atake(self) -> None:
        if not in_event_loop():
            raise RuntimeError("memguard waits on asyncio, and no event loop of asyncio runs here; use a plain `with`")
        grant = self._claimed()
        try:
            await self._admission.aenter(grant, self._timeout)
        except BaseException:
            self._desk.leave(grant)
            raise

    def _claimed(self) -> Grant:
        if not self._desk.claim(self._grant):
            raise RuntimeError(f"a reservation is entered once; this one is {self._state}, make another")
        return self._grant

    def _held(self) -> Grant:
        if self._grant.state != HELD:
            raise RuntimeError(f"only a held reservation has a scope; this one is {self._state}")
        return self._grant


def _reset(token: contextvars.Token[Grant | None]) -> None:
    # In another context than it was set in (a coroutine or generator that is finalized): there is nothing to undo.
    with contextlib.suppress(ValueError, RuntimeError, LookupError):
        _around.reset(token)


def lent_around(desk: Desk) -> int | None:
    """Return what the reservations that are held around here have left for others; None where there is none."""
    grant = _nearest(_around.get(), desk)
    if grant is None:
        return None
    total = 0
    while grant is not None:
        total += grant.nbytes
        grant = grant.outer
    return total


def _nearest(around: Grant | None, desk: Desk) -> Grant | None:
    """Return the grant of this desk that is held around here; those of a process before the fork do not count."""
    while around is not None and (around.state != HELD or around.books is not desk.books):
        around = around.around
    return around
