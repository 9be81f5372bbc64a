"""
Bytes that one caller holds, from entering to leaving.

Nested in the same context, a reservation draws from the one around it first: so a middleware, a guard and a chunk in
it do not book the same bytes three times, nor wait for each other.
"""

from __future__ import annotations

import contextvars
import threading
from types import TracebackType
from typing import Self

from memguard.breaker._admission import Admission, Grant, in_event_loop
from memguard.units import ByteSize, parse_bytes

_around: contextvars.ContextVar[Reservation | None] = contextvars.ContextVar("memguard_reservation", default=None)


class Reservation:
    """
    Bytes set aside; inert until entered, with ``with`` or ``async with``.

    Made by :meth:`MemoryCircuitBreaker.reserve`. What it holds is given back when it is left, by :meth:`release`, or
    at the latest when it is garbage.
    """

    # Where most reservations stay: set on the class, they cost nothing to make.
    _state: str = "new"
    _grant: Grant | None = None
    _outer: Reservation | None = None
    _token: contextvars.Token[Reservation | None] | None = None
    _drawn_bytes = 0
    _lent_bytes = 0

    def __init__(self, admission: Admission, nbytes: int, timeout: float | None) -> None:
        self._admission = admission
        self._nbytes = nbytes
        self._timeout = timeout
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes asked for."""
        return self._nbytes

    def __enter__(self) -> Self:
        """
        Book the bytes.

        Raises:
            MemoryCircuitBreakerError: They do not fit in time.
            RuntimeError: It would wait on an event loop's thread, or was entered before.
        """
        if self._timeout != 0 and in_event_loop():
            raise RuntimeError("a plain `with` would block the event loop while it waits; use `async with`")
        rest = self._begin()
        try:
            if self._outer is None:
                self._grant = self._admission.enter(rest, self._timeout)
            else:
                self._grant = self._drawn() or self._admission.enter(rest, self._timeout, nested=True)
        except BaseException:
            self._give_up()
            raise
        self._state = "held"
        self._token = _around.set(self)
        return self

    async def __aenter__(self) -> Self:
        """Book the bytes as ``with`` does, without blocking the event loop while waiting."""
        rest = self._begin()
        try:
            nested = self._outer is not None
            self._grant = self._drawn() or await self._admission.aenter(rest, self._timeout, nested=nested)
        except BaseException:
            self._give_up()
            raise
        self._state = "held"
        self._token = _around.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the bytes back."""
        self.deactivate()
        self.release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the bytes back."""
        self.deactivate()
        self.release()

    def release(self) -> None:
        """Give the bytes back now; a second call does nothing. Bytes that a nested one drew follow when it is left."""
        with self._lock:
            if self._state != "held":
                return
            self._state = "released"
            lent = self._lent_bytes
        if self._outer is None and not lent:
            assert self._grant is not None
            self._admission.leave(self._grant)
        else:
            self._return(self._nbytes - lent)

    def resize(self, nbytes: ByteSize) -> None:
        """
        Hold *nbytes* from now on. Growing does not wait.

        Raises:
            MemoryCircuitBreakerError: The growth does not fit; what was held stays held.
            RuntimeError: It is not held.
            ValueError: It would shrink below what nested reservations draw from it.
        """
        size = parse_bytes(nbytes)
        if self._state != "held":
            raise RuntimeError(f"only a held reservation can be resized; this one is {self._state}")
        if size < self._lent_bytes:
            raise ValueError(f"nested reservations draw {self._lent_bytes} bytes from it; {size} is less")
        grant = self._grant
        assert grant is not None
        growth = size - self._nbytes
        if growth > 0:
            self._admission.grow(grant, growth)
            with self._lock:
                self._nbytes = size
            return
        with self._lock:
            self._nbytes = size
        self._return(-growth)

    def activate(self) -> None:
        """Make it the one that nested reservations of this context draw from."""
        self._token = _around.set(self)

    def deactivate(self) -> None:
        """Undo :meth:`activate`."""
        token, self._token = self._token, None
        if token is None:
            return
        try:
            _around.reset(token)
        except ValueError:
            # Left in another context than it was entered in (a finalized async generator): that one has no say here.
            return

    def __del__(self) -> None:
        # May run inside any locked part, so it takes no lock: what was booked is freed at the next booking. What was
        # drawn comes back to an outer that is alive only while the inner's context lives, so it stays with it.
        grant = self._grant
        if self._state == "held" and grant is not None and grant.nbytes:
            self._admission.dropped.append(grant)

    def __repr__(self) -> str:
        return f"<Reservation of {self._nbytes} bytes, {self._state}>"

    # ----- nesting

    def _begin(self) -> int:
        """Draw what the reservation around this one has left; return the bytes that are to be booked."""
        with self._lock:
            if self._state != "new":
                raise RuntimeError(f"a reservation is entered once; this one is {self._state}, make another")
            self._state = "entering"
        outer = _around.get()
        if outer is None:
            return self._nbytes
        self._outer = self._nearest(outer)
        if self._outer is not None:
            self._drawn_bytes = self._outer._lend(self._nbytes)
        return self._nbytes - self._drawn_bytes

    def _drawn(self) -> Grant | None:
        """Return an empty grant where the reservation around this one covers it all."""
        if self._outer is None or self._drawn_bytes < self._nbytes:
            return None
        return self._admission.nothing()

    def _nearest(self, outer: Reservation | None) -> Reservation | None:
        """Return the reservation of this breaker that is held around this one, from *outer* outwards."""
        while outer is not None and (outer._state != "held" or outer._admission is not self._admission):
            outer = outer._outer
        return outer

    def _lend(self, nbytes: int) -> int:
        with self._lock:
            if self._state != "held":
                return 0
            lent = min(nbytes, self._nbytes - self._lent_bytes)
            self._lent_bytes += lent
            return lent

    def _give_up(self) -> None:
        self._state = "refused"
        if self._outer is not None and self._drawn_bytes:
            drawn, self._drawn_bytes = self._drawn_bytes, 0
            self._outer._back(drawn)

    def _back(self, nbytes: int) -> None:
        """Take back what was lent; pass it on if this reservation is over."""
        with self._lock:
            self._lent_bytes -= nbytes
            over = self._state == "released"
        if over:
            self._return(nbytes)

    def _return(self, nbytes: int) -> None:
        """Give *nbytes* back to where they came from: the outer one first, then the ledger."""
        with self._lock:
            drawn = min(nbytes, self._drawn_bytes)
            self._drawn_bytes -= drawn
            grant, outer = self._grant, self._outer
        if outer is not None and drawn:
            outer._back(drawn)
        assert grant is not None
        if self._state == "released" and self._lent_bytes == 0:
            self._admission.leave(grant)
        elif nbytes > drawn:
            self._admission.shrink(grant, nbytes - drawn)
