"""
Code of others that is called by the guard: what it raises is contained, what a signal raises is not.
"""

from __future__ import annotations

import functools
import logging
import signal
import sys
import threading

import pytest
from test_breaker import MIB, scripted
from test_reserving import reserved

from memguard import MemoryCircuitBreaker
from memguard.interrupts import is_interrupt
from memguard.relief._relief import Step, run_steps
from memguard.signals import Signal, contained

pytestmark = pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="signals of this kind are POSIX")


class TimeLimitError(Exception):
    """As task queues raise one."""


class Limit:
    """Handlers in all their forms."""

    def method(self, number, frame):
        raise TimeLimitError(number)

    def __call__(self, number, frame):
        self.method(number, frame)


def plain(number, frame):
    raise TimeLimitError(number)


def loose(*args):
    raise TimeLimitError(args[0])


def leave(number, frame):
    raise SystemExit(128 + number)


def with_more(reason, number, frame):
    raise TimeLimitError(reason)


HANDLERS = [plain, loose, Limit().method, Limit(), functools.partial(with_more, "late"), leave]


@pytest.fixture(params=HANDLERS, ids=lambda handler: getattr(handler, "__name__", type(handler).__name__))
def alarm(request):
    before = signal.signal(signal.SIGUSR1, request.param)
    yield lambda *_: signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_what_a_signal_handler_raises_passes_a_listener(alarm):
    told = Signal("news")
    told.connect(alarm)
    with pytest.raises((TimeLimitError, SystemExit)):
        told.announce(1)


def test_what_a_signal_handler_raises_passes_relief(alarm):
    with pytest.raises((TimeLimitError, SystemExit)):
        run_steps([Step("mine", alarm)], lambda: 0, lambda: 0.0)


def test_what_a_signal_handler_raises_in_a_listener_of_a_breaker_leaves_its_books_in_order(alarm):
    breaker, _, clock = scripted(0.5, 0.95, 0.5)
    disconnect = breaker.on_change.connect(alarm)
    breaker.check()
    clock.now += 60.0
    with pytest.raises((TimeLimitError, SystemExit)):
        breaker.allows(MIB)
    disconnect()
    assert reserved(breaker) == 0


@pytest.mark.parametrize("kind", [TimeLimitError, SystemExit, BaseException])
def test_what_a_listener_raises_by_itself_is_contained(kind):
    def fail(frame=None):
        raise kind("mine")

    assert contained(fail, what="listener") is None


def test_a_function_that_gets_an_older_frame_is_no_handler():
    def outer(frame):
        return inner(frame)

    def inner(frame):
        raise ValueError

    try:
        outer(sys._getframe().f_back)
    except ValueError as error:
        assert not is_interrupt(error)


def test_a_keyboard_interrupt_passes_in_any_thread():
    seen = []

    def work():
        def interrupt():
            raise KeyboardInterrupt

        try:
            contained(interrupt, what="listener")
        except KeyboardInterrupt:
            seen.append("passed")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30.0)
    assert seen == ["passed"]


def test_what_a_signal_handler_raises_in_a_sampler_passes_and_leaves_the_last_reading(alarm):
    breaker, sampler, clock = scripted(0.5)
    breaker.check()
    broken = MemoryCircuitBreaker(sampler=lambda: alarm() or sampler(), clock=clock, relief=False)
    with pytest.raises((TimeLimitError, SystemExit)):
        broken.check()
    with pytest.raises((TimeLimitError, SystemExit)):
        broken.reserve(MIB).__enter__()
    assert reserved(broken) == 0


class Broken(logging.Handler):
    """Fails before it comes to what logging contains."""

    def handle(self, record):
        raise RuntimeError("the disk of the log is full")


def test_a_log_handler_that_fails_does_not_fail_the_work():
    log = logging.getLogger("memguard")
    handler = Broken()
    log.addHandler(handler)
    try:
        breaker, _, clock = scripted(0.5, 0.95, 0.5)
        breaker.check()
        clock.now += 60.0
        assert breaker.allows(MIB) is False
        failing = MemoryCircuitBreaker(sampler=lambda: 1 / 0, clock=clock, relief=False)
        with failing.reserve(MIB):
            assert reserved(failing) == MIB
    finally:
        log.removeHandler(handler)
