"""
What forked children forget.
"""

from __future__ import annotations

import gc
import os

import pytest

from memguard import forking
from memguard.forking import forget_in_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


class Noted:
    """Notes in which order objects are asked to forget."""

    def __init__(self, name, notes, error=None):
        self.name, self.notes, self.error = name, notes, error
        forget_in_child(self)

    def _forget_threads(self):
        self.notes.append(self.name)
        if self.error is not None:
            raise self.error


def in_child(say):
    """Return what *say* returns in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, repr(say()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_objects_forget_in_the_order_in_which_they_came():
    notes = []
    kept = [Noted(name, notes) for name in "abc"]

    assert in_child(lambda: notes) == "['a', 'b', 'c']"
    assert notes == []
    assert len(kept) == 3


@pytest.mark.parametrize("error", [ZeroDivisionError("broken"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_one_that_fails_does_not_stop_the_others(error):
    notes = []
    kept = [Noted("a", notes, error), Noted("b", notes)]

    assert in_child(lambda: notes) == "['a', 'b']"
    assert kept


def test_who_died_is_asked_no_more():
    notes = []
    dead = Noted("dead", notes)
    number = max(forking._known)
    assert forking._known[number]() is dead
    del dead
    gc.collect()

    assert in_child(lambda: notes) == "[]"
    assert number not in forking._known


def test_who_dies_while_others_forget_disturbs_nobody():
    notes = []

    class Last(Noted):
        def _forget_threads(self):
            super()._forget_threads()
            held.clear()
            gc.collect()

    last = Last("last", notes)
    held = [Noted("held", notes)]

    assert in_child(lambda: (notes, len(held))) == "(['last'], 0)"
    assert last


def test_a_fork_out_of_a_finalizer_while_one_is_registered_is_survived():
    notes, said = [], []

    class Forks:
        def __del__(self):
            said.append(in_child(lambda: notes))

    class Slow(Noted):
        def __init__(self):
            loop = [Forks()]
            loop.append(loop)
            del loop
            gc.collect()
            super().__init__("slow", notes)

    kept = [Noted("first", notes), Slow()]

    assert said == ["['first']"]
    assert kept


def test_a_log_handler_that_fails_does_not_stop_the_others(monkeypatch):
    notes = []
    kept = [Noted("a", notes, ValueError()), Noted("b", notes)]

    def broken(*_):
        raise SystemExit(1)

    monkeypatch.setattr(forking._log, "exception", broken)

    assert in_child(lambda: notes) == "['a', 'b']"
    assert kept
