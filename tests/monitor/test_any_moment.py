"""
What a monitor does must not hang, blind or unbalance anything, whatever comes in between.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from memguard import MemoryMonitor
from memguard.monitor._clockwork import Clockwork
from memguard.testing import FakeClock, ScriptedSampler

MIB = 1024**2
LONG = 30.0
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such signals here")


def scripted(**options):
    return MemoryMonitor(sampler=ScriptedSampler([0.5], clock=FakeClock()), **options)


class Hearing:
    """Counts what it hears of, and lets a test wait for it."""

    def __init__(self, enough):
        self.count, self.enough, self.reached = 0, enough, threading.Event()

    def __call__(self, *_):
        self.count += 1
        if self.count >= self.enough:
            self.reached.set()


# ----- the thread


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()], ids=repr
)
@pytest.mark.parametrize("who", ["listener", "sampler"])
def test_the_thread_lives_whatever_is_raised_in_it(error, who):
    heard = Hearing(3)

    def fail(*_):
        heard()
        raise error

    monitor = MemoryMonitor(sampler=fail if who == "sampler" else ScriptedSampler([0.5]), sample_interval=0.001)
    if who == "listener":
        monitor.on_sample.connect(fail)
    with monitor:
        assert heard.reached.wait(LONG)
        assert monitor.running

    assert not monitor.running


def test_the_thread_lives_where_a_log_handler_fails(monkeypatch):
    monkeypatch.setattr("memguard.monitor._clockwork._PAUSE_SECONDS", 0.001)

    class Broken(logging.Handler):
        def emit(self, record):
            raise SystemExit(1)

    heard, handler = Hearing(3), Broken()

    def sampler():
        heard()
        raise OSError("no figures today")

    logging.getLogger("memguard").addHandler(handler)
    try:
        with MemoryMonitor(sampler=sampler, sample_interval=0.001) as monitor:
            assert heard.reached.wait(LONG)
            assert monitor.running
    finally:
        logging.getLogger("memguard").removeHandler(handler)


class Beats:
    def __init__(self, beat):
        self.beat = beat


def test_a_clockwork_goes_on_after_a_beat_that_failed(monkeypatch, caplog):
    monkeypatch.setattr("memguard.monitor._clockwork._PAUSE_SECONDS", 0.001)
    heard = Hearing(3)

    def beat():
        heard()
        raise SystemExit(1)

    thing = Beats(beat)
    clockwork = Clockwork(thing, "memguard-test")
    clockwork.start()
    assert heard.reached.wait(LONG)
    assert clockwork.running
    clockwork.stop()

    assert not clockwork.running
    assert "the work of a thread failed; it goes on" in caplog.text


def test_an_interval_longer_than_the_platform_can_wait_is_waited_for():
    thing = Beats(lambda: 1e300)
    clockwork = Clockwork(thing, "memguard-test")
    clockwork.start()

    clockwork.stop()

    assert not clockwork._thread.is_alive()


def refuse(thread):
    raise RuntimeError("can't start new thread")


def test_where_no_thread_can_be_started_the_monitor_is_stopped_and_says_so(monkeypatch):
    monitor = scripted()
    hooks = list(gc.callbacks)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match=r"cannot run: can't start new thread; call tick\(\) by hand"):
            monitor.start()

    assert not monitor.running
    assert gc.callbacks == hooks
    assert monitor.tick().fraction == 0.5
    with monitor:
        assert monitor.running


def test_an_exception_of_a_signal_handler_during_the_start_leaves_it_stopped(monkeypatch):
    monitor, start = scripted(), threading.Thread.start
    hooks = list(gc.callbacks)

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            monitor.start()

    assert not monitor.running
    assert gc.callbacks == hooks


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_in_the_middle_of_the_start_wins(monkeypatch, when):
    """SIGTERM comes while the main thread starts the monitor."""
    monitor, start = scripted(), threading.Thread.start
    hooks = list(gc.callbacks)

    def stopped_meanwhile(thread):
        if when == "before":
            monitor.stop()
        start(thread)
        if when == "after":
            monitor.stop()

    monkeypatch.setattr(threading.Thread, "start", stopped_meanwhile)
    monitor.start()

    assert not monitor.running
    assert gc.callbacks == hooks


def test_a_second_start_does_nothing_and_one_after_the_thread_s_end_starts_another():
    monitor = scripted()
    monitor.start()
    first = monitor._clockwork
    monitor.start()
    assert monitor._clockwork is first
    first.stop()  # as if its thread had ended by itself
    assert not monitor.running

    monitor.start()

    assert monitor.running
    monitor.stop()


def test_a_monitor_that_nobody_holds_leaves_nothing_behind():
    monitor = scripted(sample_interval=3600)
    hooks = list(gc.callbacks)
    monitor.start()
    thread, gone = monitor._clockwork._thread, weakref.ref(monitor)

    del monitor
    gc.collect()
    thread.join(LONG)

    assert gone() is None
    assert not thread.is_alive()
    assert gc.callbacks == hooks


# ----- ticks


def test_a_tick_inside_of_a_tick_is_judged_after_it():
    """A finalizer or signal handler that ticks, or a listener."""
    monitor = scripted()
    judge = monitor._judge
    order = []

    def judged(taken):
        order.append("begin")
        if len(order) == 1:
            monitor.tick()
        judge(taken)
        order.append("end")

    monitor._judge = judged
    monitor.tick()

    assert order == ["begin", "end", "begin", "end"]
    assert len(monitor.samples) == 2


def test_threads_that_tick_at_once_lose_no_sample():
    monitor = scripted(max_samples=10_000)
    barrier = threading.Barrier(4)

    def work():
        barrier.wait(LONG)
        for _ in range(50):
            monitor.tick()
            len(monitor.samples)
            monitor.detect_leak()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert len(monitor.samples) == 200


def test_finalizers_that_ask_and_tick_hang_nothing():
    monitor = scripted()

    class Asks:
        def __init__(self):
            self.me = self

        def __del__(self):
            monitor.tick()
            with monitor.track("finalizer"):
                monitor.health()

    threshold = gc.get_threshold()
    gc.set_threshold(20)
    try:
        for _ in range(60):
            Asks()
            monitor.tick()
            with monitor.track("job"):
                pass
    finally:
        gc.set_threshold(*threshold)
    gc.collect()

    assert monitor.operations["job"].count == 60
    assert monitor.operations["finalizer"].count == 60


@signals
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_that_ask_and_raise_leave_a_monitor_that_works():
    monitor = scripted()
    count, armed = [0], [False]

    class Interrupt(Exception):
        pass

    def handler(number, frame):
        count[0] += 1
        monitor.tick()
        monitor.health()
        with monitor.track("handler"):
            pass
        raises, armed[0] = armed[0], False
        if count[0] < 100:  # once more, only now: on a slow machine it would interrupt itself without end
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        if raises:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while count[0] < 100:
            try:
                armed[0] = count[0] % 2 == 1
                monitor.tick()
                with monitor.track("job"):
                    monitor.samples  # noqa: B018 - it may raise
                armed[0] = False
            except Interrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert monitor.operations["handler"].count == count[0]
    taken = monitor.tick()
    assert monitor.samples[-1] == taken
    assert not monitor._turn.taken


STOPS = """
import os, signal, sys, threading, memguard
from memguard.testing import ScriptedSampler
monitor = memguard.MemoryMonitor(sampler=ScriptedSampler([0.5]), sample_interval=0.001)
def stop(number, frame):
    monitor.stop()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGTERM)).start()
while True:
    monitor.start()
    monitor.tick()
    monitor.stop()
"""


@signals
@pytest.mark.parametrize("after", ["0.05", "0.07", "0.11"])
def test_a_monitor_that_is_stopped_by_a_signal_ends_the_process(after):
    out = subprocess.run([sys.executable, "-c", STOPS, after], capture_output=True, text=True, timeout=60, check=False)

    assert out.returncode == 0, out.stderr


@forks
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("where", ["judging", "counting"])
def test_in_a_forked_child_what_other_threads_were_at_is_in_nobody_s_way(where):
    monitor = scripted()
    inside, go = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        inside.set()
        assert go.wait(LONG)

    judge, lock = monitor._judge, monitor._operations._lock
    if where == "judging":
        monitor._judge = slow
        work = monitor.tick
    else:

        def work():
            with lock:
                slow()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(LONG)
    monitor._judge = judge
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        with monitor.track("job"):
            pass
        monitor.tick()
        os._exit(0 if len(monitor.samples) == 1 and monitor.operations["job"].count == 1 else 1)
    go.set()
    thread.join(LONG)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@forks
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_in_a_forked_child_that_can_start_no_thread_the_monitor_is_stopped(monkeypatch):
    with scripted(sample_interval=3600) as monitor:
        child = None
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            patched.setattr(logging.getLogger("memguard"), "disabled", True)
            child = os.fork()
        if child == 0:
            os._exit(monitor.running)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert monitor.running


# ----- operations


def test_runs_that_end_at_once_are_all_counted():
    monitor = scripted()
    barrier = threading.Barrier(6)

    def work():
        barrier.wait(LONG)
        for _ in range(100):
            with monitor.track("job"):
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert monitor.operations["job"].count == 600


@pytest.mark.parametrize("fault", ["a field without a repr", "a log handler"])
def test_what_cannot_be_logged_costs_no_result(fault, caplog):
    monitor = scripted()

    class Evil:
        def __repr__(self):
            raise ValueError("no repr")

    class Broken(logging.Handler):
        def emit(self, record):
            raise OSError("disk full")

    handler = Broken() if fault == "a log handler" else logging.NullHandler()
    logging.getLogger("memguard").addHandler(handler)

    @monitor.track("job", order=Evil())
    def job():
        return 42

    try:
        with caplog.at_level(logging.DEBUG, "memguard"):
            assert job() == 42
    finally:
        logging.getLogger("memguard").removeHandler(handler)

    assert monitor.operations["job"].count == 1
    assert "order=<Evil, whose repr raised ValueError>" in caplog.text or fault == "a log handler"


def test_an_explanation_that_fails_costs_no_health():
    monitor = scripted()
    monitor.explain("cache", lambda: 1 / 0)

    assert monitor.health()["explained_bytes"].keys() == {"caches"}
