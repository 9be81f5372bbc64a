"""
One at a time, and never stuck: whatever interrupts the one whose turn it is.

A signal handler and the garbage collector may run between any two calls of Python code, in the thread that they
interrupt; both may ask for the same turn again, and a handler may raise. So nothing here waits for the thread that it
runs in, and the sections under a lock are assignments alone: no call, no loop, nothing that allocates, hence nothing
in between. The lock is taken by ``with``, which CPython does in one step up to 3.13 and from 3.15 on. In 3.14 an
exception of a signal handler may come just after, and the lock stays taken for other threads: seen in 16 of 800
interrupts of a loop that does nothing else.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

from memguard.forking import forget_in_child


class Bell:
    """
    Rung once, from anywhere, and heard by all who wait, also later.

    What :class:`threading.Event` is, made of one lock of the interpreter's own: an Event is written in Python, and
    whoever sets one in a signal handler that interrupted the same Event waits for itself.
    """

    __slots__ = ("_closed", "rung")

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()
        self.rung = False

    def ring(self) -> None:
        """Let all go on who wait. A second time does nothing."""
        self.rung = True
        try:
            self._closed.release()
        except RuntimeError:
            pass  # it was rung before

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is rung, at most *seconds*; None: for ever. Return whether it was."""
        timeout = -1 if seconds is None else min(max(seconds, 0.0), threading.TIMEOUT_MAX)
        if not self.rung and self._closed.acquire(timeout=timeout):
            self.ring()  # for the next who waits
        return self.rung


class Turn:
    """
    What one thread may do at a time.

    Whoever wants it makes a claim first, and takes the turn inside of ``try``::

        claim = Claim(turn)
        try:
            if claim.take(): ...
        finally:
            claim.give_back()

    The turn knows its holder weakly. So even an exception that a signal handler raises inside of the ``finally`` gives
    it back, once nobody holds the claim any more.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: weakref.ref[Claim] | None = None
        self._thread = 0
        self._waiting: deque[Bell] = deque()
        forget_in_child(self)

    @property
    def taken(self) -> bool:
        """Whether somebody has it."""
        return self._holder is not None

    @property
    def taken_here(self) -> bool:
        """Whether the calling thread has it, further down its stack: then to wait for it would be for ever."""
        return self._holder is not None and self._thread == threading.get_ident()

    def wait(self, seconds: float) -> bool:
        """Wait until whoever has it now gives it back, at most *seconds*; return whether that happened."""
        bell = Bell()
        self._waiting.append(bell)
        if self.taken_here:
            return False
        if self._holder is None or bell.wait(seconds):
            return True
        try:
            self._waiting.remove(bell)
        except ValueError:
            pass  # it was rung just now
        return bell.rung

    def _free(self, reference: weakref.ref[Claim] | None) -> None:
        """End the turn of *reference*, if it has it; also called when the claim dies."""
        freed = False
        with self._lock:
            if self._holder is reference:
                self._holder = None
                freed = True
        while freed and self._waiting:
            try:
                self._waiting.popleft().ring()
            except IndexError:
                return  # another thread was first

    def _forget_threads(self) -> None:
        self._lock = threading.RLock()
        self._waiting = deque()
        if self._thread != threading.get_ident():
            self._holder = None


class Claim:
    """One wish to have a *turn*; see there."""

    __slots__ = ("__weakref__", "_reference", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._reference: weakref.ref[Claim] | None = None

    def take(self) -> bool:
        """Take the turn if nobody has it; return whether it was free. Never waits."""
        turn, thread, taken = self._turn, threading.get_ident(), False
        self._reference = reference = weakref.ref(self, turn._free)
        with turn._lock:
            if turn._holder is None:
                turn._holder = reference
                turn._thread = thread
                taken = True
        return taken

    def give_back(self) -> None:
        """End the turn; nothing if it was not taken."""
        if self._reference is not None:
            self._turn._free(self._reference)
            # Or the claim's end would call that again, where what a signal handler raises is lost.
            self._reference = None
