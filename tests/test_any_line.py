"""
An exception of a signal handler may come at any line. Here one comes at each, and after each nothing is stuck.

Where the promise is kept by the interpreter (it runs no handler between two assignments), no line is left out here
all the same: more is tried than can happen.
"""

from __future__ import annotations

import gc
import linecache
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

import memguard
from memguard import MemoryMonitor, measure_peak
from memguard.relief import Relief, Step
from memguard.sampling import Machine, _peak
from memguard.testing import FakeClock, ScriptedSampler
from memguard.turns import Claim, Turn

SOURCE = str(Path(memguard.__file__).parent)


class Interrupt(BaseException):
    """What a signal handler raises."""


def takes_a_lock(path, line):
    """Tell whether a lock is taken or let go there, which is one step: a tracer that raises would come in between."""
    text = linecache.getline(path, line).strip()
    return text.startswith("with ") and text.endswith("lock:")


def interrupted_at_each_line(work):
    """Run *work* again and again, each time with an exception one line of memguard later; yield after each time."""
    line = 0
    while True:
        line += 1
        left, came = [line], []

        def in_memguard(frame, event, argument, left=left, came=came):
            if event == "line" and not takes_a_lock(frame.f_code.co_filename, frame.f_lineno):
                left[0] -= 1
                if left[0] == 0:
                    came.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                    raise Interrupt
            return in_memguard

        def anywhere(frame, event, argument, local=in_memguard):
            return local if frame.f_code.co_filename.startswith(SOURCE) else None

        before = sys.gettrace()
        sys.settrace(anywhere)
        try:
            work()
        except (Interrupt, RuntimeError):
            pass
        finally:
            sys.settrace(before)
        if not came:
            assert line > 5, "it did something"
            return
        yield came[0]


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_turn_is_given_back():
    turn = Turn()

    def work():
        claim = Claim(turn)
        try:
            claim.take()
        finally:
            claim.give_back()

    for where in interrupted_at_each_line(work):
        assert not turn.taken, where


@pytest.mark.parametrize("meter", ["kernel", "tracemalloc", "sampled"])
def test_blocks_that_measure_are_closed(meter, monkeypatch):
    if meter == "kernel" and not _peak._KernelMark.works():
        pytest.skip("the kernel here keeps no peak that can be reset")
    monkeypatch.setattr(_peak, "_all_blocks", {})

    def work():
        with measure_peak(meter=meter), measure_peak(meter=meter):
            pass

    for where in interrupted_at_each_line(work):
        work()
        assert _peak._all_blocks[meter]._open == {}, where
        assert not tracemalloc.is_tracing(), where
        assert getattr(_peak._all_blocks[meter].mark, "_end", None) is None, where


def test_relief_stays_possible():
    clock = FakeClock()
    relief = Relief([Step("a", lambda: None), Step("b", lambda: None, worth=lambda: 10**9)], clock)

    for where in interrupted_at_each_line(lambda: relief.attempt(lambda: 5, wanted=lambda used: 3)):
        clock.advance(100)
        assert relief.attempt(lambda: 5), where
        clock.advance(100)


def test_readings_stay_possible():
    machine = Machine()
    expected = machine().source

    def work():
        machine()
        machine._looked_at = None

    for where in interrupted_at_each_line(work):
        assert machine().source == expected, where
    machine.close()


def test_a_monitor_goes_on_to_judge_and_to_count():
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5], clock=FakeClock()))

    def work():
        with monitor.track("job"):
            monitor.tick()

    for where in interrupted_at_each_line(work):
        before = 0 if "job" not in monitor.operations else monitor.operations["job"].count
        work()
        assert monitor.operations["job"].count == before + 1, where
        assert not monitor._turn.taken, where


def test_a_monitor_can_be_stopped_and_started():
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5], clock=FakeClock()), sample_interval=0.01)
    hooks = list(gc.callbacks)

    def work():
        monitor.start()
        monitor.stop()

    for where in interrupted_at_each_line(work):
        monitor.stop()
        assert gc.callbacks == hooks, where
        monitor.start()
        assert monitor.running, where
        monitor.stop()
    for thread in threading.enumerate():
        if thread.name == "memguard-monitor":
            thread.join(30)
            assert not thread.is_alive()
