"""
The books of a breaker: what counts as taken, and that nothing can come in between.
"""

from __future__ import annotations

import dis
import gc
import inspect
import os
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_breaker import MIB, scripted

from memguard import MemoryUsage
from memguard.breaker import Reservation, _desk
from memguard.breaker._desk import HELD, OVER, Desk, View
from memguard.policy import Circuit, Lines, next_floor, top_bytes

LINES = Lines.of(800).at(1000)


class Books:
    """A desk, readings by hand, and who holds what."""

    def __init__(self, used=100, kept=0):
        self.desk = Desk()
        self.held = []
        self.look(used, kept=kept)

    def look(self, used, *, began=None, kept=0, lingering=0):
        desk, before = self.desk, self.desk.view
        began = began or desk.counts()
        quiet = began == desk.counts()
        floor = next_floor(before.floor, used, kept, desk.reserved_bytes, quiet=quiet)
        usage = MemoryUsage(used, used, used, 1000, "scripted", 0.0)
        view = View(before.number + 1, usage, LINES, Circuit(), floor, kept, began.freed_bytes)
        told = floor.nbytes + lingering
        self.top = top_bytes(LINES, kept)
        assert desk.settle(before, view, None, told_bytes=told, top_bytes=self.top, began=began)

    def book(self, nbytes, outer=None):
        holder = Reservation(self.desk, None, nbytes, 0.0)
        grant = holder._grant
        grant.outer = outer
        if not self.desk.admit(grant):
            return None
        self.held.append(holder)
        return grant

    @property
    def counted(self):
        return self.top - self.desk.room_bytes


def test_bytes_allocated_under_a_reservation_count_once():
    books = Books(100)
    books.book(50)
    assert books.counted == 150

    books.look(150)  # the job has allocated them
    assert books.counted == 150
    assert books.book(650)
    assert not books.book(1)


def test_bytes_not_yet_allocated_go_on_counting():
    books = Books(100)
    books.book(50)
    books.look(100)

    assert books.counted == 150


def test_growth_outside_of_reservations_is_not_missed():
    books = Books(100)
    grant = books.book(50)
    books.look(400)
    assert books.counted == 400

    books.desk.leave(grant)
    books.look(90)
    assert books.counted == 90


def test_what_was_given_back_counts_until_a_reading_that_began_later():
    books = Books(100)
    grant = books.book(50)
    began = books.desk.counts()
    books.desk.leave(grant)
    assert books.counted == 150

    books.look(100, began=began)
    assert books.counted == 150
    books.look(100)
    assert books.counted == 100


def test_what_was_booked_while_a_reading_was_taken_counts_beside_it():
    books = Books(100)
    began = books.desk.counts()
    books.book(50)

    books.look(100, began=began)

    assert books.counted == 150


def test_what_ended_jobs_left_with_the_allocator_does_not_pass_for_that_of_running_ones():
    books = Books(100, kept=10)
    first = books.book(50)
    books.book(80)
    books.desk.leave(first)

    books.look(150, kept=60)

    assert books.counted == 100 + 50 + 80


def test_what_lingers_counts():
    books = Books(100)
    books.book(10)

    books.look(100, lingering=50)

    assert books.counted == 160


@pytest.mark.parametrize(
    ("nbytes", "kept", "fits"),
    [
        pytest.param(20, 0, False, id="over the threshold"),
        pytest.param(20, 10, True, id="what is kept covers the rest"),
        pytest.param(21, 10, False, id="it covers too little"),
        pytest.param(86, 90, False, id="it could reach the highest threshold if none was taken again"),
    ],
)
def test_what_is_kept_is_room_as_far_as_the_highest_threshold(nbytes, kept, fits):
    books = Books(790, kept=kept)

    assert (books.book(nbytes) is not None) is fits


@given(st.lists(st.tuples(st.sampled_from(["book", "nest", "look", "leave", "grow", "shrink"]), st.integers(0, 300))))
def test_whatever_happens_the_books_are_the_sum_of_what_is_held_and_no_byte_is_promised_twice(steps):
    books, grants, since = Books(0), [], 0
    used = 0
    for step, number in steps:
        grant = grants[number % len(grants)] if grants else None
        if step in ("book", "nest"):
            outer = grant if step == "nest" else None
            before = books.desk.booked_bytes
            got = books.book(number, outer)
            since += books.desk.booked_bytes - before
            if got:
                grants.append(got)
        elif step == "look":
            used, since = number * 2, 0
            books.look(used)
        elif grant is None:
            continue
        elif step == "leave":
            books.desk.leave(grant)
            grants.remove(grant)
        elif step == "grow":
            before = books.desk.booked_bytes
            books.desk.grow(grant, grant.asked_bytes + number)
            since += books.desk.booked_bytes - before
        else:
            books.desk.shrink(grant, min(number, grant.asked_bytes))
        held = sum(each.nbytes for each in books.desk.grants)
        assert books.desk.reserved_bytes == held
        assert all(each.nbytes >= 0 and each.state == HELD for each in grants)
        assert books.counted >= used + min(since, held)
    for grant in grants:
        books.desk.leave(grant)
    assert books.desk.reserved_bytes == 0
    assert not books.desk.grants


def test_an_outer_one_lends_what_it_holds_and_gets_it_back():
    books = Books(100)
    outer = books.book(100)
    inner = books.book(60, outer)
    assert (outer.nbytes, inner.nbytes, books.desk.reserved_bytes) == (40, 60, 100)

    books.desk.leave(inner)
    assert (outer.nbytes, books.desk.reserved_bytes) == (100, 100)


def test_what_was_drawn_from_one_that_is_over_goes_back_to_the_books():
    books = Books(100)
    outer = books.book(100)
    inner = books.book(60, outer)

    books.desk.leave(outer)
    assert books.desk.reserved_bytes == 60
    books.desk.leave(inner)
    assert books.desk.reserved_bytes == 0


def test_a_dropped_holder_in_a_cycle_gives_its_bytes_back():
    books = Books(100)
    holder = Reservation(books.desk, None, 50, 0.0)
    assert books.desk.admit(holder._grant)
    holder._admission = holder
    del holder
    gc.collect()

    books.desk.sweep()

    assert books.desk.reserved_bytes == 0


def test_a_grant_from_before_new_books_changes_nothing_in_them():
    books = Books(100)
    grant = books.book(50)
    books.desk.forget()
    books.look(100)
    other = books.book(30)

    books.desk.leave(grant)

    assert (grant.state, books.desk.reserved_bytes) == (OVER, 30)
    books.desk.leave(other)


# Where CPython looks for signals, starts a collection, or runs somebody else's code.
_INTERRUPTED = ("CALL", "JUMP_BACKWARD", "BUILD_", "MAKE_", "RESUME", "SEND", "YIELD", "IMPORT", "FORMAT", "FOR_ITER")


def under_lock(fn):
    """Return the names of the instructions of *fn* that stand under ``with self.lock``."""
    lines, first = inspect.getsourcelines(fn)
    inside, depth = set(), None
    for number, line in enumerate(lines, first):
        indent = len(line) - len(line.lstrip())
        if depth is not None and line.strip() and indent <= depth:
            depth = None
        if depth is not None:
            inside.add(number)
        if line.strip().startswith("with self.lock:"):
            depth = indent
    at, found = None, []
    for instruction in dis.get_instructions(fn):
        at = (instruction.positions.lineno if instruction.positions else None) or at
        if at in inside:
            found.append(instruction.opname)
    return found


LOCKED = [fn for _, fn in inspect.getmembers(Desk, inspect.isfunction) if "with self.lock:" in inspect.getsource(fn)]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="reads CPython's byte code")
@pytest.mark.parametrize("fn", LOCKED, ids=lambda fn: fn.__name__)
def test_what_stands_under_the_lock_is_a_straight_line(fn):
    names = under_lock(fn)

    assert names
    assert [name for name in names if name.startswith(_INTERRUPTED)] == []


def test_every_locked_part_of_the_desk_is_looked_at():
    assert len(LOCKED) == inspect.getsource(_desk).count("with self.lock:")


def test_a_thread_that_holds_the_lock_in_the_parent_does_not_stop_a_child():
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    breaker, _, _ = scripted(0.5)
    locked, go = threading.Event(), threading.Event()

    def hold():
        with breaker._desk.lock:
            locked.set()
            assert go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(30)
    child = os.fork()
    if child == 0:
        with breaker.reserve(MIB):
            os._exit(0 if breaker.statistics().reserved_bytes == MIB else 1)
    go.set()
    thread.join(30)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
