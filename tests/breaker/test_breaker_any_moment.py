"""
What comes in between at any moment: exceptions of signal handlers, finalizers, forks, threads that cannot start.

An exception is tried at each line of the breaker, but for those under the desk's lock, which run as one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import linecache
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_breaker import MIB, scripted
from test_reserving import reserved, wait_until_waiting

import memguard
from memguard import (
    MemoryCircuitBreaker,
    MemoryCircuitBreakerError,
    MemoryUsage,
    ReservationTooLargeError,
    SamplingError,
)
from memguard.breaker import _default as default
from memguard.breaker import _desk
from memguard.testing import FakeClock, ScriptedSampler

SOURCE = str(Path(memguard.__file__).parent)
SOON = 30.0
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


class Interrupt(BaseException):
    """What a signal handler raises."""


def one_step_lines():
    """Return the lines of the desk that run as one step: those under its lock, and the one that takes it."""
    found, depth = set(), None
    for number, line in enumerate(inspect.getsource(_desk).splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if depth is not None and line.strip() and indent <= depth:
            depth = None
        if line.strip().startswith("with self.lock:"):
            depth = indent
        if depth is not None:
            found.add(number)
    return found


ONE_STEP = one_step_lines()
DESK = str(Path(_desk.__file__))


def is_one_step(path, line):
    """Tell whether nothing can come in between there: under the desk's lock, or where a lock is taken or let go."""
    if path == DESK and line in ONE_STEP:
        return True
    text = linecache.getline(path, line).strip()
    return text.startswith("with ") and text.endswith("lock:")


@pytest.fixture
def quick():
    """Thousands of rounds: collect only what is new, and format no tracebacks."""
    gc.collect()
    gc.freeze()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    gc.unfreeze()


def interrupted_at_each_line(work):
    """Run *work* again and again, each time with an exception one line of memguard later; yield after each time."""
    line = 0
    while True:
        line += 1
        left, came = [line], []

        def in_memguard(frame, event, argument, left=left, came=came):
            if event == "line" and not is_one_step(frame.f_code.co_filename, frame.f_lineno):
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
        except (Interrupt, RuntimeError, MemoryCircuitBreakerError):
            pass
        finally:
            sys.settrace(before)
        if not came:
            assert line > 5, "it did something"
            return
        yield came[0]


def assert_whole(breaker, where):
    """Assert that nothing is lost, and that others can go on."""
    gc.collect()
    counts = breaker.statistics()
    assert (counts.reserved_bytes, counts.waiting, breaker._desk.on_ramp) == (0, 0, 0), where
    before = counts.readings
    breaker.tick()
    assert breaker.statistics().readings == before + 1, where
    got = []

    def other():
        with breaker.reserve(MIB):
            got.append(1)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(SOON)
    assert got == [1], where


def in_a_body(breaker):
    with breaker.reserve(10 * MIB), breaker.reserve(4 * MIB):
        pass


def resized(breaker):
    with breaker.reserve(10 * MIB) as held:
        held.resize(20 * MIB)
        with breaker.reserve(5 * MIB) as inner:
            inner.resize(8 * MIB)
        held.resize(1 * MIB)


def acquired(breaker):
    held = breaker.acquire(10 * MIB)
    held.run(lambda: breaker.acquire(4 * MIB).release())
    held.release()


def in_a_task(breaker):
    async def main():
        async with breaker.reserve(10 * MIB, timeout=None):
            pass

    asyncio.run(main())


def looked_at(breaker):
    breaker.tick()
    breaker.check()
    breaker.allows(10 * MIB)
    breaker.health()


def refused(breaker):
    with contextlib.suppress(ReservationTooLargeError), breaker.reserve(5000 * MIB):
        pass


def guarded(breaker):
    breaker.guard(cost=MIB)(lambda: None)()
    list(breaker.guard(cost=MIB)(lambda: (n for n in range(2)))())


def learned(breaker):
    breaker.guard(cost="auto", timeout=SOON)(lambda: None)()


def waits_a_moment(breaker):
    held = breaker.acquire(290 * MIB)
    try:
        with contextlib.suppress(MemoryCircuitBreakerError), breaker.reserve(20 * MIB, timeout=0.001):
            pass
    finally:
        sys.settrace(None)  # what follows stands for the rest of the program
        held.release()


@pytest.mark.parametrize(
    "work",
    [in_a_body, resized, acquired, looked_at, refused, guarded, learned, in_a_task, waits_a_moment],
    ids=lambda work: work.__name__,
)
def test_an_exception_at_any_line_leaves_the_books_whole_and_the_breaker_seeing(work, quick):
    breaker, _, clock = scripted(0.5)
    work(breaker)
    for where in interrupted_at_each_line(lambda: work(breaker)):
        clock.advance(2)
        assert_whole(breaker, where)


def test_an_exception_at_any_line_of_a_change_loses_no_later_change(quick):
    clock = FakeClock()
    sampler = ScriptedSampler([0.5], limit_bytes=1000 * MIB, clock=clock)
    breaker = MemoryCircuitBreaker(sampler=sampler, clock=clock, relief=False)
    heard = []
    breaker.on_change.connect(heard.append)
    at = [0.5]

    def work():
        clock.advance(100)
        at[0] = 0.9 if at[0] == 0.5 else 0.5
        sampler.then(at[0])
        breaker.tick()

    for where in interrupted_at_each_line(work):
        work()
        work()
        assert heard[-1].after.value == breaker.state, where


class Asking:
    """Garbage that asks the breaker when it is collected."""

    def __init__(self, breaker, done):
        self.breaker, self.done, self.itself = breaker, done, self

    def __del__(self):
        self.breaker.health()
        self.breaker.allows(MIB)
        with self.breaker.reserve(MIB):
            self.done.append(1)


def test_finalizers_that_ask_and_reserve_run_in_the_midst_of_anything():
    breaker, _, clock = scripted(0.5)
    done = []
    before = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for _ in range(300):
            Asking(breaker, done)
            with breaker.reserve(10 * MIB):
                breaker.tick()
            clock.advance(2)
    finally:
        gc.set_threshold(*before)
    gc.collect()

    assert len(done) == 300
    assert reserved(breaker) == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals come to the main thread")
def test_a_signal_handler_may_ask_reserve_and_give_back_whatever_it_interrupts():
    breaker, _, _ = scripted(0.5)
    hits = []

    def handler(*_):
        breaker.health()
        breaker.statistics()
        with breaker.reserve(MIB):
            hits.append(1)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        while len(hits) < 300:
            seen = len(hits)  # before the timer: it may go off at once
            signal.setitimer(signal.ITIMER_REAL, 0.0001)
            while len(hits) == seen:
                with breaker.reserve(10 * MIB), breaker.reserve(MIB):
                    breaker.tick()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert reserved(breaker) == 0


def test_a_handler_may_ask_for_the_default_breaker_while_it_is_made(monkeypatch):
    monkeypatch.setattr(default, "_made", {})
    inside = []

    def limit_arenas():
        if not inside:
            inside.append(1)
            inside.append(memguard.default_breaker())

    monkeypatch.setattr(default, "limit_arenas", limit_arenas)

    assert memguard.default_breaker() is inside[1]


def test_a_job_may_give_back_in_the_callback_of_a_pool():
    breaker, _, _ = scripted(0.5)
    most = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(30):
            held = breaker.acquire(100 * MIB, timeout=SOON)
            most.append(reserved(breaker))
            pool.submit(held.run, lambda: None).add_done_callback(lambda _, held=held: held.release())

    assert reserved(breaker) == 0
    assert max(most) <= 300 * MIB


def test_reservations_of_an_exit_stack_are_siblings():
    breaker, _, _ = scripted(0.5)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(breaker.reserve(50 * MIB))
        assert reserved(breaker) == 150 * MIB
    assert reserved(breaker) == 0


def test_reservations_that_a_loop_enters_by_hand_are_siblings():
    breaker, _, _ = scripted(0.5)
    held = [breaker.reserve(50 * MIB) for _ in range(3)]
    for each in held:
        each.__enter__()
    assert reserved(breaker) == 150 * MIB
    for each in held:
        each.__exit__(None, None, None)
    assert reserved(breaker) == 0


def test_child_tasks_share_what_is_left_of_their_parents_reservation():
    breaker, _, _ = scripted(0.5)
    most = []

    async def child():
        async with breaker.reserve(60 * MIB):
            await asyncio.sleep(0)
            most.append(reserved(breaker))
            await asyncio.sleep(0)

    async def main():
        async with breaker.reserve(100 * MIB):
            await asyncio.gather(child(), child())
            assert reserved(breaker) == 100 * MIB

    asyncio.run(main())
    assert max(most) == 120 * MIB
    assert reserved(breaker) == 0


def test_a_task_that_renews_itself_keeps_no_chain():
    breaker, _, _ = scripted(0.5)
    tasks = []

    async def step(left):
        async with breaker.reserve(MIB):
            if left:
                tasks.append(asyncio.create_task(step(left - 1)))
            await asyncio.sleep(0)

    async def main():
        await step(100)
        while tasks:
            await tasks.pop(0)
        gc.collect()
        assert sum(isinstance(each, memguard.Reservation) for each in gc.get_objects()) < 10

    asyncio.run(main())
    assert reserved(breaker) == 0


def test_what_a_thread_pool_runs_in_a_reservations_scope_draws_from_it():
    breaker, _, _ = scripted(0.5)

    @breaker.guard(cost=100 * MIB, timeout=None)
    def work():
        return reserved(breaker)

    with ThreadPoolExecutor(1) as pool, breaker.reserve(100 * MIB) as held:
        assert pool.submit(held.run, work).result(SOON) == 100 * MIB


def test_growing_draws_from_the_reservation_around_it():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(250 * MIB), breaker.reserve(50 * MIB) as inner:
        inner.resize(200 * MIB)
        assert reserved(breaker) == 250 * MIB


@forks
def test_a_child_that_forks_inside_a_body_books_its_own_bytes():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(100 * MIB):
        child = os.fork()
        if child == 0:
            with breaker.reserve(60 * MIB):
                os._exit(0 if breaker.statistics().reserved_bytes == 60 * MIB else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert reserved(breaker) == 100 * MIB


@forks
def test_a_reservation_made_before_a_fork_can_be_entered_in_the_child():
    breaker, _, _ = scripted(0.5)
    held = breaker.reserve(MIB)
    child = os.fork()
    if child == 0:
        with held:
            code = 0 if breaker.statistics().reserved_bytes == MIB else 1
        os._exit(code or breaker.statistics().reserved_bytes)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def fails(error):
    def sampler():
        raise error

    return sampler


@pytest.mark.parametrize(
    "error", [SamplingError("no descriptor"), OSError(24, "too many open files"), RuntimeError("odd")]
)
def test_a_breaker_that_never_saw_anything_holds_nobody_up(error, caplog):
    breaker = MemoryCircuitBreaker(sampler=fails(error), relief=False)

    breaker.check()
    assert breaker.allows(MIB)
    assert breaker.execute(lambda: 42) == 42
    with breaker.reserve(10 * MIB):
        assert reserved(breaker) == 10 * MIB
    assert breaker.health()["source"] == "unknown"
    assert caplog.text.count("no reading") == 1


def test_a_reading_that_fails_keeps_the_last_one_and_is_tried_again_soon():
    clock, broken = FakeClock(), []
    good = ScriptedSampler([0.5], limit_bytes=1000 * MIB, clock=clock)

    def sampler():
        if broken:
            raise OSError(24, "too many open files")
        return good()

    breaker = MemoryCircuitBreaker(sampler=sampler, clock=clock, relief=False)
    breaker.tick()
    broken.append(1)
    clock.advance(5)
    with pytest.raises(MemoryCircuitBreakerError):
        breaker.acquire(301 * MIB)
    broken.clear()
    good.then(0.1)
    clock.advance(0.2)
    breaker.acquire(301 * MIB).release()


def test_no_thread_can_be_started_and_nobody_hears_of_it(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    breaker, _, _ = scripted(0.9, relief=True)

    async def main():
        with pytest.raises(MemoryCircuitBreakerError):
            breaker.check()
        with pytest.raises(MemoryCircuitBreakerError):
            async with breaker.reserve(MIB):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3), asyncio.CancelledError()])
def test_a_listener_that_lets_anything_out_stops_neither_the_breaker_nor_the_others(error):
    breaker, sampler, clock = scripted(0.5)
    heard = []

    def bad(change):
        raise error

    breaker.on_change.connect(bad)
    breaker.on_change.connect(heard.append)
    breaker.tick()
    sampler.then(0.9)
    clock.advance(2)
    breaker.tick()
    assert [change.after.value for change in heard] == ["open"]


def test_zero_bytes_stand_in_no_queue():
    breaker, _, _ = scripted(0.5)
    held = breaker.acquire(250 * MIB)
    thread = threading.Thread(target=lambda: breaker.acquire(100 * MIB, timeout=SOON).release())
    thread.start()
    wait_until_waiting(breaker, 1)

    assert breaker.allows(0)
    with breaker.reserve(0):
        pass
    assert breaker.guard(lambda: "ok")() == "ok"
    assert breaker.execute(lambda: "ok") == "ok"
    held.release()
    thread.join(SOON)


def test_what_can_never_fit_any_more_is_refused_and_lets_the_others_go_on():
    clock = FakeClock()
    limit = [1000 * MIB]

    def sampler():
        return MemoryUsage(0, 0, limit[0] // 10, limit[0], "scripted", clock())

    breaker = MemoryCircuitBreaker(sampler=sampler, clock=clock, relief=False)
    held = breaker.acquire(500 * MIB)
    outcome = []

    def large():
        try:
            breaker.acquire(600 * MIB, timeout=SOON).release()
        except ReservationTooLargeError as error:
            outcome.append(("large", error.retry_after))

    def small():
        breaker.acquire(250 * MIB, timeout=SOON).release()
        outcome.append(("small", None))

    threads = [threading.Thread(target=large), threading.Thread(target=small)]
    threads[0].start()
    wait_until_waiting(breaker, 1)
    threads[1].start()
    wait_until_waiting(breaker, 2)
    limit[0] = 500 * MIB
    clock.advance(2)
    held.release()
    for thread in threads:
        thread.join(SOON)

    assert sorted(outcome) == [("large", None), ("small", None)]


def test_nested_requests_that_hold_all_there_is_do_not_wait_for_each_other():
    breaker, _, _ = scripted(0.0)
    done = []

    async def request(outer, inner):
        try:
            async with breaker.reserve(outer, timeout=None):
                await asyncio.sleep(0.01)
                async with breaker.reserve(inner, timeout=None):
                    done.append("done")
        except MemoryCircuitBreakerError:
            done.append("refused")

    async def main(outer, inner):
        await asyncio.wait_for(asyncio.gather(*(request(outer, inner) for _ in range(8))), SOON)

    asyncio.run(main(100 * MIB, 150 * MIB))
    assert done == ["done"] * 8
    done.clear()
    # Not even one could go on up to the highest threshold: some are refused, and the others go on.
    asyncio.run(main(100 * MIB, 400 * MIB))
    assert sorted(set(done)) == ["done", "refused"]
    assert len(done) == 8
    assert reserved(breaker) == 0


def test_a_waiter_whose_loop_rests_for_long_is_passed_over_and_keeps_its_place():
    breaker, sampler, clock = scripted(0.75)
    loop = asyncio.new_event_loop()
    got = []

    async def wait():
        async with breaker.reserve(100 * MIB, timeout=None):
            got.append("task")

    task = loop.create_task(wait())
    while breaker.statistics().waiting < 1:
        loop.run_until_complete(asyncio.sleep(0))
    thread = threading.Thread(target=lambda: (breaker.acquire(10 * MIB, timeout=SOON).release(), got.append("thread")))
    thread.start()
    thread.join(SOON)
    assert got == ["thread"]
    assert breaker.statistics().waiting == 1

    sampler.then(0.1)
    clock.advance(5)
    loop.run_until_complete(task)
    loop.close()
    assert got == ["thread", "task"]


def test_allows_says_what_a_reservation_would_get_right_after_bytes_came_back():
    breaker, _, _ = scripted(0.5)
    breaker.acquire(290 * MIB).release()
    assert breaker.allows(290 * MIB)
    breaker.acquire(290 * MIB).release()


def test_a_stack_of_two_breakers_nests_each_with_its_own():
    one, _, _ = scripted(0.5)
    other, _, _ = scripted(0.5)
    with one.reserve(50 * MIB), other.reserve(50 * MIB), one.reserve(50 * MIB), other.reserve(50 * MIB):
        assert (reserved(one), reserved(other)) == (50 * MIB, 50 * MIB)


def test_infinity_means_for_ever_and_nan_is_refused():
    breaker, _, _ = scripted(0.5)
    breaker.acquire(1, timeout=float("inf")).release()
    for bad in (float("nan"), -1.0, True):
        with pytest.raises((ValueError, TypeError)):
            breaker.reserve(1, timeout=bad)
    for bad in (float("nan"), float("inf"), -1, True):
        with pytest.raises((ValueError, TypeError)):
            breaker.reserve(bad)
    assert breaker.reserve(1.5).nbytes == 2


def test_a_dropped_reservation_gives_back_wherever_it_is_dropped():
    breaker, _, _ = scripted(0.5)
    contextvars.copy_context().run(breaker.reserve(60 * MIB).__enter__)
    gc.collect()
    assert reserved(breaker) == 0
    with breaker.reserve(100 * MIB):
        contextvars.copy_context().run(breaker.reserve(60 * MIB).__enter__)
    gc.collect()
    assert reserved(breaker) == 0


def test_under_another_kind_of_loop_the_error_says_that_asyncio_is_needed():
    breaker, _, _ = scripted(0.5)
    coroutine = breaker.reserve(MIB).__aenter__()
    with pytest.raises(RuntimeError, match="asyncio"):
        coroutine.send(None)


@pytest.mark.parametrize("between", [0, 10 * MIB], ids=["a check", "a smaller one"])
def test_what_is_around_the_one_around_is_drawn_from_as_well(between):
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(250 * MIB), breaker.reserve(between), breaker.reserve(200 * MIB):
        assert reserved(breaker) == 250 * MIB
    assert reserved(breaker) == 0


def test_one_that_was_released_in_between_hides_not_the_one_further_out():
    breaker, _, _ = scripted(0.5)
    other, _, _ = scripted(0.5)
    with breaker.reserve(250 * MIB), breaker.reserve(10 * MIB) as inner, other.reserve(MIB) as foreign:
        inner.release()
        foreign.release()
        with breaker.reserve(200 * MIB):
            assert reserved(breaker) == 250 * MIB
    assert reserved(breaker) == 0


def test_allows_counts_what_the_reservations_around_it_have_left():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(250 * MIB), breaker.reserve(0):
        assert breaker.allows(300 * MIB)
        assert not breaker.allows(301 * MIB)
        breaker.acquire(1).release()


def test_what_a_guarded_generator_does_as_it_is_closed_is_in_its_scope():
    breaker, _, _ = scripted(0.5)
    seen = []

    @breaker.guard(cost=250 * MIB)
    def rows():
        try:
            yield 1
        finally:
            with breaker.reserve(200 * MIB):
                seen.append(reserved(breaker))

    steps = rows()
    next(steps)
    steps.close()
    assert seen == [250 * MIB]
    assert reserved(breaker) == 0


@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
def test_thousands_of_reservations_leave_nothing_behind(mode):
    breaker, _, _ = scripted(0.5, mode=mode)
    for _ in range(1000):
        with breaker.reserve(1):
            pass
        breaker.acquire(1).release()
        breaker.guard(cost=1)(int)()
    assert len(breaker._desk.dropped) < 10
    assert len(breaker._desk.grants) == 0


class Pretender:
    """Says that it is a number, and that its size is odd."""

    __class__ = int
    nbytes = float("nan")


def usage(used, limit):
    return MemoryUsage(5, 5, used, limit, "odd", 0.0)


@pytest.mark.parametrize(
    "reading",
    [
        None,
        5,
        "x",
        object(),
        usage(-5, 100),
        usage(float("nan"), 100),
        usage(10, -5),
        usage(10, float("inf")),
        usage("a", 1),
    ],
    ids=repr,
)
def test_a_sampler_that_returns_nonsense_has_failed(reading, caplog):
    breaker = MemoryCircuitBreaker(sampler=lambda: reading, relief=False)
    breaker.check()
    with breaker.reserve(5):
        pass
    breaker.describe()
    assert breaker.health()["source"] == "unknown"
    assert caplog.text.count("no reading") == 1


def test_arguments_that_pretend_cost_nothing_but_their_own_measurement():
    breaker, _, _ = scripted(0.5)
    assert breaker.guard(cost="auto", timeout=SOON)(lambda *args: len(args))(Pretender(), 10**400, [1]) == 3


def test_an_awaitable_that_is_more_than_that_stays_what_it_is():
    breaker, _, _ = scripted(0.5)

    class Connecting:
        def __await__(self):
            return self.connect().__await__()

        async def connect(self):
            await asyncio.sleep(0)
            return reserved(breaker)

        async def __aenter__(self):
            return reserved(breaker)

        async def __aexit__(self, *error):
            pass

    for cost in (None, 10 * MIB):
        connect = breaker.guard(cost=cost)(lambda: Connecting())  # noqa: PLW0108

        async def main(connect=connect):
            async with connect() as held:
                pass
            return held, await connect()

        assert asyncio.run(main()) == (cost or 0, cost or 0)
        gc.collect()
        assert reserved(breaker) == 0


def test_two_who_resize_to_the_same_size_grow_it_once():
    breaker, _, _ = scripted(0.5)
    held = breaker.acquire(100)
    assert breaker._desk.grow(held._grant, 200)
    assert breaker._desk.grow(held._grant, 200)
    assert (held.nbytes, reserved(breaker)) == (200, 200)
    held.release()


def test_one_that_was_released_is_not_entered_again():
    breaker, _, _ = scripted(0.5)
    held = breaker.acquire(100)
    with held:
        pass
    with pytest.raises(RuntimeError, match="entered once"), held:
        pass
    assert held.nbytes == 100


def test_a_reservation_from_before_the_mode_changed_can_be_resized():
    breaker = memguard.MemoryCircuitBreaker(
        sampler=ScriptedSampler([0.5], limit_bytes=1000 * MIB), mode="off", relief=False
    )
    held = breaker.acquire(100)
    breaker._apply(default._config({"mode": "enforce"}))
    held.resize(200)
    held.resize(50)
    assert held.nbytes == 50
    held.release()
    assert reserved(breaker) == 0


def test_off_computes_no_cost_and_looks_at_no_call():
    breaker, _, _ = scripted(0.5, mode="off")
    assert breaker.guard(cost=lambda: 1 // 0)(lambda: "ok")() == "ok"
    assert breaker.learned() == {}


def test_a_coroutine_in_a_scope_may_be_finalized_anywhere():
    breaker, _, _ = scripted(0.5)
    held = breaker.acquire(MIB)

    class Forever:
        def __await__(self):
            yield

    async def stuck():
        await Forever()

    coroutine = held.arun(stuck)
    contextvars.copy_context().run(coroutine.send, None)
    coroutine.close()  # in another context than it was begun in
    held.release()
    assert reserved(breaker) == 0


def test_what_was_drawn_by_way_of_one_that_is_over_goes_back_to_the_one_further_out():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(250 * MIB):
        middle = breaker.acquire(150 * MIB)
        inner = middle.run(breaker.acquire, 150 * MIB)
        middle.release()
        inner.release()
        assert reserved(breaker) == 250 * MIB
    assert reserved(breaker) == 0


def test_what_one_that_is_over_had_booked_itself_goes_back_to_the_books():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(100 * MIB):
        middle = breaker.acquire(200 * MIB)  # a hundred of its own
        inner = middle.run(breaker.acquire, 200 * MIB)
        other = middle.run(breaker.acquire, 0)
        middle.release()
        other.release()
        inner.release()
        assert reserved(breaker) == 100 * MIB
    assert reserved(breaker) == 0


def test_a_chain_of_reservations_that_draw_from_each_other_is_not_kept():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(100 * MIB):
        held = breaker.acquire(100 * MIB)
        for _ in range(300):
            successor = held.run(breaker.acquire, 100 * MIB)
            held.release()
            held = successor
        gc.collect()
        assert sum(isinstance(each, _desk.Grant) for each in gc.get_objects()) < 20
        held.release()
        assert reserved(breaker) == 100 * MIB
    assert reserved(breaker) == 0


def test_two_generators_that_hold_bytes_between_their_steps_are_siblings():
    breaker, _, _ = scripted(0.5)

    def rows():
        with breaker.reserve(100 * MIB):
            yield

    async def arows():
        async with breaker.reserve(100 * MIB):
            yield

    async def main():
        two = arows(), arows()
        for steps in two:
            await anext(steps)
        assert reserved(breaker) == 200 * MIB
        for steps in two:
            await steps.aclose()

    first, second = rows(), rows()
    next(first), next(second)
    assert reserved(breaker) == 200 * MIB
    first.close()
    second.close()
    asyncio.run(main())
    assert reserved(breaker) == 0


def test_the_body_of_a_context_manager_made_of_a_generator_is_a_scope():
    breaker, _, _ = scripted(0.5)

    @contextlib.contextmanager
    def holding():
        with breaker.reserve(100 * MIB):
            yield

    @contextlib.asynccontextmanager
    async def aholding():
        async with breaker.reserve(100 * MIB):
            yield

    async def main():
        async with aholding(), breaker.reserve(60 * MIB):
            assert reserved(breaker) == 100 * MIB

    with holding(), breaker.reserve(60 * MIB):
        assert reserved(breaker) == 100 * MIB
    asyncio.run(main())
    assert reserved(breaker) == 0


def test_a_plain_with_around_one_that_was_acquired_on_a_loop_only_gives_back():
    breaker, _, _ = scripted(0.5)

    async def main():
        with await breaker.aacquire(10 * MIB, timeout=5) as held:
            assert reserved(breaker) == held.nbytes

    asyncio.run(main())
    assert reserved(breaker) == 0


def test_scopes_that_are_left_out_of_order_are_left():
    breaker, _, _ = scripted(0.5)
    first, second = breaker.reserve(MIB), breaker.reserve(MIB)
    for held in (first, second):
        held.__enter__()
        held.activate()
    for held in (first, second, first, second):
        held.deactivate()
        held.release()
    assert reserved(breaker) == 0
