"""
Who holds how many bytes, and how many are left: the part of a breaker that is locked.

Rule 1: what stands under the lock is a straight line: no call, no loop, no new object that the collector counts.
CPython looks for signals only after calls and at the end of a loop, and collects garbage only there or where such an
object is made. So no signal handler, no exception of one and no finalizer comes in between, and no books are left half
written. A test reads the byte code of this file and holds it to that.

(How the lock is taken, and what that means on CPython 3.14: see :mod:`memguard.turns`.)

Rule 2: the lock is re-entrant, so a handler or finalizer that runs just beside such a section in the same thread goes
straight through; another thread's section is over in less than a microsecond. So giving back never waits for anybody.

Nothing here measures, decides when memory is tight, or waits.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memguard.policy import Circuit, Floor, LineBytes
from memguard.values import MemoryUsage

if TYPE_CHECKING:
    from memguard.breaker._queue import Waiter

NEW: Final = 0
ENTERED: Final = 1
WAITING: Final = 2
HELD: Final = 3
OVER: Final = 4
MANY: Final = 2**62
"""More permits, or more room, than anybody asks for."""


_LONG_AGO: Final = float("-inf")


class Grant(weakref.ref[Any]):
    """
    What one reservation holds; known to the desk until it is given back.

    It refers to its reservation weakly. One that is dropped without being left puts its grant among the dropped ones:
    that is one C call, which nothing can interrupt.

    Inside the body of the reservation it is the token that others draw from. They take bytes over and bring them back;
    so there is no chain to walk, and whoever holds bytes has them in its own grant.

    Attributes:
        books: The books it stands in. A forked child begins new ones.
        asked_bytes: What the reservation is to hold.
        nbytes: What it holds now, without what others drew from it.
        drawn_bytes: How much of what it holds was drawn from *outer*.
        state: NEW; ENTERED by a caller; WAITING and HELD, known to the desk; OVER.
        on_ramp: Whether it takes one of the places of a half-open circuit.
        outer: The grant it draws from.
        around: The token of its context when it was entered; it may be another breaker's.
    """

    __slots__ = ("around", "asked_bytes", "books", "drawn_bytes", "nbytes", "on_ramp", "outer", "state")

    books: object
    asked_bytes: int
    nbytes: int
    drawn_bytes: int
    state: int
    on_ramp: bool
    outer: Grant | None
    around: Grant | None


def _creditor(outer: Grant | None, owed: int) -> tuple[Grant | None, int, tuple[Grant, ...]]:
    """
    Return the nearest grant from *outer* outwards that is not over, what is owed to it, and those in between.

    Those in between owe it what they drew: no more than that goes back by way of them.
    """
    links: tuple[Grant, ...] = ()
    while outer is not None and outer.state == OVER:
        owed = min(owed, outer.drawn_bytes)
        links = (*links, outer)
        outer = outer.outer
    return (outer, owed, links) if outer is not None and owed else (None, 0, ())


class View(NamedTuple):
    """
    What the last reading showed, swapped as a whole: whoever looks needs no lock.

    Attributes:
        number: Of the reading, in the order in which they began.
        usage: What it saw; None before the first one.
        lines: The thresholds that count.
        circuit: Where the circuit stands.
        floor: What is in use without any reservation.
        kept_bytes: What of the use this process's allocator keeps free.
        freed_bytes: All that had been given back when the reading began.
    """

    number: int = 0
    usage: MemoryUsage | None = None
    lines: LineBytes | None = None
    circuit: Circuit = Circuit()
    floor: Floor = Floor()
    kept_bytes: int = 0
    freed_bytes: int = 0


class Counts(NamedTuple):
    """How far the books are: all that was ever booked and given back, and how often work was admitted."""

    booked_bytes: int
    freed_bytes: int
    admitted: int


class Note:
    """Something to tell, in the order in which it came about; the next one hangs on it."""

    __slots__ = ("next", "what")

    def __init__(self, what: object) -> None:
        self.what = what
        self.next: Note | None = None


class Desk:
    """The books of one breaker, and what the last reading leaves to be booked."""

    __slots__ = (
        "__weakref__",
        "admitted",
        "booked_bytes",
        "books",
        "clock",
        "dropped",
        "enforcing",
        "finished",
        "freed_bytes",
        "grants",
        "last_note",
        "lock",
        "note_dropped",
        "on_ramp",
        "permits",
        "queue",
        "readings",
        "refused",
        "room_bytes",
        "stale_at",
        "view",
        "zeros",
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.view = View()
        self.dropped: deque[Grant] = deque()
        self.note_dropped: Callable[[Grant], object] = self.dropped.append
        """Called by a grant whose reservation is dropped: one step of C, which nothing can interrupt."""
        self.admitted = 0
        self.refused = 0
        self.readings = 0
        self.last_note = Note(None)
        self.enforcing = True
        self.permits = MANY
        """How many may be on the ramp; as good as all while the circuit is closed, none while it is open."""
        self.forget()

    def forget(self) -> None:
        """Begin new books: in a forked child, those who hold or wait do not exist."""
        self.lock = threading.RLock()
        self.books = object()
        self.booked_bytes = 0
        self.freed_bytes = 0
        self.on_ramp = 0
        self.finished = 0
        """How many left the ramp."""
        self.room_bytes = 0
        """What may be booked without looking closer."""
        self.grants: dict[Grant, None] = {}
        self.dropped.clear()
        self.queue: deque[Waiter] = deque()
        """Who waits for bytes."""
        self.zeros: deque[Waiter] = deque()
        """Who waits for the circuit alone: they stand in nobody's way."""
        self.stale_at = _LONG_AGO
        """Until when the last reading is good."""
        self.view = self.view._replace(floor=Floor(), freed_bytes=0)

    @property
    def reserved_bytes(self) -> int:
        """What is booked now."""
        return self.booked_bytes - self.freed_bytes

    @property
    def waiting(self) -> int:
        """Callers who wait."""
        return len(self.queue) + len(self.zeros)

    def counts(self) -> Counts:
        """Return how far the books are."""
        # What was given back first: it may be a moment older than the other two, which is the safe side.
        freed_bytes = self.freed_bytes
        return Counts(self.booked_bytes, freed_bytes, self.admitted)

    # ----- taking

    def claim(self, grant: Grant) -> bool:
        """Have *grant* entered by this caller; tell whether it was new."""
        with self.lock:
            new = grant.state == NEW
            if new:
                grant.state = ENTERED
                grant.books = self.books  # it may have been made before a fork
        return new

    def take(self, grant: Grant) -> bool:
        """
        Book what *grant* asks for, if that is as simple as it mostly is; tell whether it is held now.

        That is: it is new and draws from nobody, the circuit is closed, and nobody waits. What :meth:`admit` does as
        well, in half the time.
        """
        with self.lock:
            nbytes = grant.asked_bytes
            held = (
                nbytes <= self.room_bytes
                and self.permits == MANY
                and grant.state == NEW
                and grant.outer is None
                and not self.queue
                and grant.books is self.books
            )
            if held:
                self.grants[grant] = None
                grant.nbytes = nbytes
                grant.state = HELD
                self.booked_bytes += nbytes
                self.room_bytes -= nbytes
                self.admitted += 1
        return held

    def admit(self, grant: Grant, *, in_turn: bool = False, beyond_bytes: int = 0) -> bool:
        """
        Book what *grant* lacks if the last reading leaves room; tell whether it is held now.

        It draws from the one around it first. One that does may overtake those who wait: what it holds comes back only
        when it can go on. One that the outer covers whole asks nobody.

        Args:
            grant: New, or waiting.
            in_turn: Nobody is before it.
            beyond_bytes: What it may take above the threshold.
        """
        with self.lock:
            lacking = grant.asked_bytes - grant.nbytes
            drawn = 0
            outer = grant.outer
            if outer is not None:
                if outer.state == HELD:
                    drawn = lacking if lacking < outer.nbytes else outer.nbytes
                    lacking -= drawn
                in_turn = True
            fits = (
                (self.on_ramp < self.permits or (outer is not None and self.permits > 0))
                and (lacking == 0 or (lacking <= self.room_bytes + beyond_bytes and (in_turn or not self.queue)))
            ) or (lacking == 0 and outer is not None)
            held = (fits or not self.enforcing) and grant.state < HELD and grant.books is self.books
            if held:
                if not fits:
                    self.refused += 1
                if outer is not None and drawn:
                    outer.nbytes -= drawn
                    grant.drawn_bytes += drawn
                if self.permits != MANY and outer is None:
                    grant.on_ramp = True
                    self.on_ramp += 1
                self.grants[grant] = None
                grant.nbytes += drawn + lacking
                grant.state = HELD
                self.booked_bytes += lacking
                self.room_bytes -= lacking
                self.admitted += 1
        return held

    def fits(self, nbytes: int, *, in_turn: bool = False, nested: bool = False) -> bool:
        """Tell whether :meth:`admit` would say yes to a grant that lacks *nbytes*, with an outer one if *nested*."""
        if not self.enforcing or (nested and nbytes == 0):
            return True
        if nested:
            return self.permits > 0 and nbytes <= self.room_bytes
        if self.on_ramp >= self.permits:
            return False
        return nbytes == 0 or (nbytes <= self.room_bytes and (in_turn or not self.queue))

    def reuse(self, grant: Grant, before: Counts, *, in_turn: bool) -> bool:
        """Book what *grant* asks for, whatever the room, if nobody holds bytes and nobody came in since *before*."""
        admitted = before.admitted
        with self.lock:
            held = (
                self.booked_bytes == self.freed_bytes
                and self.on_ramp == 0
                and self.admitted == admitted
                and (in_turn or not self.queue)
                and grant.state < HELD
                and grant.nbytes == 0
                and grant.books is self.books
            )
            if held:
                self.grants[grant] = None
                self.on_ramp = 1
                grant.on_ramp = True
                grant.nbytes = grant.asked_bytes
                grant.state = HELD
                self.booked_bytes += grant.nbytes
                self.room_bytes -= grant.nbytes
                self.admitted += 1
        return held

    def wait(self, grant: Grant) -> None:
        """Note that *grant* waits; it takes along what the outer one has left."""
        with self.lock:
            if grant.state == ENTERED:
                grant.state = WAITING
                self.grants[grant] = None
                outer = grant.outer
                if outer is not None and outer.state == HELD:
                    lacking = grant.asked_bytes - grant.nbytes
                    drawn = lacking if lacking < outer.nbytes else outer.nbytes
                    outer.nbytes -= drawn
                    grant.nbytes += drawn
                    grant.drawn_bytes += drawn

    def gather(self, grant: Grant, nbytes: int) -> None:
        """Have *grant*, which is to lend *nbytes*, draw what it lacks from those around it, as far as they have it."""
        links = []
        outer: Grant | None = grant
        while outer is not None and outer.outer is not None and outer.nbytes < nbytes:
            nbytes -= outer.nbytes
            links.append((outer, nbytes))
            outer = outer.outer
        for link, lacking in reversed(links):
            self._draw(link, lacking)

    def _draw(self, grant: Grant, nbytes: int) -> None:
        with self.lock:
            outer = grant.outer
            if outer is not None and outer.state == HELD and grant.state == HELD:
                drawn = nbytes if nbytes < outer.nbytes else outer.nbytes
                outer.nbytes -= drawn
                grant.nbytes += drawn
                grant.drawn_bytes += drawn

    def grow(self, grant: Grant, size: int) -> bool:
        """Have *grant* hold *size* bytes instead of fewer if there is room; tell whether it does."""
        with self.lock:
            lacking = size - grant.asked_bytes
            if lacking < 0:
                lacking = 0
            nbytes = lacking
            drawn = 0
            outer = grant.outer
            if outer is not None and outer.state == HELD:
                drawn = lacking if lacking < outer.nbytes else outer.nbytes
                lacking -= drawn
            fits = lacking == 0 or (lacking <= self.room_bytes and self.permits > 0)
            grown = (fits or not self.enforcing) and grant.state == HELD and grant.books is self.books
            if grown:
                if not fits:
                    self.refused += 1
                if outer is not None and drawn:
                    outer.nbytes -= drawn
                    grant.drawn_bytes += drawn
                grant.nbytes += nbytes
                grant.asked_bytes += nbytes
                self.booked_bytes += lacking
                self.room_bytes -= lacking
        return grown

    # ----- giving back

    def shrink(self, grant: Grant, size: int) -> int:
        """Have *grant* hold *size* bytes instead of more; return what is missing because others drew it, or 0."""
        with self.lock:
            back = grant.asked_bytes - size
            missing = back - grant.nbytes if back > grant.nbytes and grant in self.grants else 0
            if grant.state == HELD and back > 0 and missing == 0:
                grant.asked_bytes = size
                if grant in self.grants:
                    grant.nbytes -= back
                    outer = grant.outer
                    drawn = back if back < grant.drawn_bytes else grant.drawn_bytes
                    grant.drawn_bytes -= drawn
                    if outer is not None and outer.state == HELD:
                        outer.nbytes += drawn
                        back -= drawn
                    self.freed_bytes += back
        return missing

    def leave(self, grant: Grant) -> int:
        """Give back what *grant* holds; return how many bytes came back to the books. A second call does nothing."""
        outer, owed = grant.outer, grant.drawn_bytes
        links: tuple[Grant, ...] = ()
        if outer is not None and outer.state == OVER:
            outer, owed, links = _creditor(outer, owed)
        drawn = 0
        with self.lock:
            back = 0
            if grant.state != OVER and grant.books is self.books:
                back = grant.nbytes
                if outer is not None and outer.state == HELD:
                    drawn = back if back < owed else owed
                    outer.nbytes += drawn
                    back -= drawn
                    owed -= drawn
                self.freed_bytes += back
                if grant.on_ramp:
                    self.on_ramp -= 1
                    self.finished += 1
                    self.stale_at = _LONG_AGO
                if grant.state >= WAITING:
                    del self.grants[grant]
                # What others drew from it, and it from others, goes on to those when these give it back.
                grant.drawn_bytes = owed
                grant.outer = outer if owed else None
            grant.state = OVER
            grant.nbytes = 0
            grant.on_ramp = False
        for link in links:
            link.drawn_bytes -= drawn
        around = grant.around
        if around is not None:
            # Whoever enters in this context later may still draw from one further out; but no chain is kept.
            while around is not None and around.state != HELD:
                around = around.around
            grant.around = around
        return back

    def sweep(self) -> None:
        """Take back what was dropped without being left."""
        while self.dropped:
            try:
                grant = self.dropped[0]
                if hasattr(grant, "around"):  # set last: else its reservation was dropped while it was made
                    self.leave(grant)
                self.dropped.remove(grant)
            except (IndexError, ValueError):
                continue  # another thread was at the same one

    # ----- a new reading

    def settle(
        self, before: View, view: View, note: Note | None, *, told_bytes: int, top_bytes: int, began: Counts
    ) -> bool:
        """
        Go by *view* from now on, unless another came first; tell whether it does.

        Args:
            before: The view that *view* was decided from.
            view: What the reading showed.
            note: What is to be told of the change, if there is something.
            told_bytes: What is taken beside reservations, by what is known without the reading: the floor, and what
                lingers.
            top_bytes: How far bookings may go.
            began: How far the books were when the reading began.
        """
        usage, circuit = view.usage, view.circuit
        assert usage is not None
        used_bytes = usage.used_bytes
        permits = circuit.permits_now
        began_booked, began_freed = began.booked_bytes, began.freed_bytes
        with self.lock:
            settled = self.view is before
            if settled:
                # What was booked since the reading began need not be in it; what was given back since may be.
                young = self.booked_bytes - began_booked
                reserved = self.booked_bytes - self.freed_bytes
                if young > reserved:
                    young = reserved
                taken = used_bytes + young
                told = told_bytes + self.booked_bytes - began_freed
                if told > taken:
                    taken = told
                self.room_bytes = top_bytes - taken
                self.permits = permits
                self.view = view
                self.readings += 1
                if note is not None:
                    self.last_note.next = note
                    self.last_note = note
        return settled
