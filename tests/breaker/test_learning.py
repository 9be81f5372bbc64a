"""
``cost="auto"``: what is learned, who runs alone, and what contradicts it. The process is played.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import mmap
import threading
import weakref

import pytest
from test_breaker import MIB, scripted
from test_reserving import reserved

from memguard import MemoryCircuitBreaker, MemoryCircuitBreakerError
from memguard.breaker._learning import Call, Gate, Record, Room
from memguard.breaker._queue import Standing, ThreadBell
from memguard.policy import Features
from memguard.relief import HeapCounts
from memguard.sampling import measure_cheaply

SMALL, LARGE = Features(100.0), Features(10_000.0)
SOON = 30.0
pytestmark = pytest.mark.filterwarnings("error")
kernel_peaks = pytest.mark.skipif(measure_cheaply().meter != "kernel", reason="the kernel keeps no peak here")


class Meter:
    """The process, played: how large it is, and how large it was since the last look."""

    meter = "kernel"

    def __init__(self):
        self.resident = 100 * MIB
        self.peak = 0
        self.free = 0
        self.broken = False

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def takes(self, nbytes):
        self.peak = max(self.peak, self.resident + nbytes)

    def lap(self):
        if self.broken:
            raise OSError("no descriptor left")
        peak, self.peak = max(self.peak, self.resident), 0
        return self.resident, peak

    def heap(self):
        return HeapCounts(self.free, self.resident - self.free)


@pytest.fixture
def meter():
    return Meter()


@pytest.fixture
def gate(meter):
    return Gate(lambda: Room(1000 * MIB, 250 * MIB), heap=meter.heap, give_back=lambda: None, meter=meter)


def run(gate, meter, record, asked, takes, times=1):  # noqa: PLR0917
    """Have calls run one after the other; return what each booked."""
    booked = []
    for _ in range(times):
        call = Call(record, asked)
        assert gate.passes(call)
        booked.append(gate.book(call))
        gate.begin(call)
        meter.takes(takes)
        gate.end(call, failed=False)
        gate.left(call)
    return booked


def begun(gate, record, asked=SMALL):
    call = Call(record, asked)
    assert gate.passes(call)
    gate.book(call)
    gate.begin(call)
    return call


def test_the_first_calls_run_alone_and_the_booking_comes_down_to_what_they_take(gate, meter):
    record = Record("f")
    first = Call(record, SMALL)
    assert gate.passes(first)
    assert not gate.passes(Call(record, SMALL))
    assert not gate.passes(Call(Record("another"), SMALL))
    gate.left(first)

    booked = run(gate, meter, record, SMALL, 80 * MIB, 4)

    assert booked[0] == 500 * MIB + 1
    assert booked[1:] == [pytest.approx(80 * MIB * (1.03 + 1 / n**2), abs=1) for n in (1, 2, 3)]


def test_more_run_at_once_as_more_went_well(gate, meter):
    record = Record("f")
    run(gate, meter, record, SMALL, 80 * MIB, 3)
    assert record.cost.most_at_once == 1
    run(gate, meter, record, SMALL, 80 * MIB, 6)

    inside = [begun(gate, record) for _ in range(3)]

    assert record.cost.most_at_once == 3
    assert not gate.passes(Call(record, SMALL))
    gate.end(inside[0], failed=False)
    gate.left(inside[0])
    assert gate.passes(Call(record, SMALL))


def test_what_runs_beside_others_is_not_measured(gate, meter):
    record, other = Record("f"), Record("g")
    for each in (record, other):
        run(gate, meter, each, SMALL, 80 * MIB, 9)
    points = record.cost.of(SMALL).points

    inside = [begun(gate, record), begun(gate, other)]
    meter.takes(10 * MIB)
    for call in inside:
        gate.end(call, failed=False)
        gate.left(call)

    assert record.cost.of(SMALL).points == points


def test_a_larger_argument_of_a_known_function_is_measured_alone_again(gate, meter):
    record = Record("f")
    run(gate, meter, record, SMALL, 80 * MIB, 9)
    small = begun(gate, record)

    assert not gate.passes(Call(record, LARGE))

    gate.end(small, failed=False)
    gate.left(small)
    booked = run(gate, meter, record, LARGE, 300 * MIB, 3)
    assert booked[0] == 500 * MIB + 1
    assert booked[2] == pytest.approx(300 * MIB * 1.28, rel=0.01)


def test_a_smaller_one_is_bounded_by_the_larger(gate, meter):
    record = Record("f")
    run(gate, meter, record, LARGE, 300 * MIB, 9)

    call = Call(record, SMALL)
    assert gate.passes(call)
    assert not call.alone
    assert gate.book(call) == pytest.approx(300 * MIB * 2.03, rel=0.01)


def test_calls_that_take_more_than_is_believed_are_believed_less(gate, meter):
    record, told = Record("f"), []
    gate.on_overrun = lambda *what: told.append(what)
    run(gate, meter, record, SMALL, 80 * MIB, 9)
    inside = [begun(gate, record) for _ in range(2)]

    meter.takes(400 * MIB)
    gate.end(inside[0], failed=False)
    gate.left(inside[0])
    waiting = Call(record, SMALL)
    assert not gate.passes(waiting)  # all are let out first
    gate.end(inside[1], failed=False)
    gate.left(inside[1])

    assert gate.passes(waiting)
    assert gate.book(waiting) > 300 * MIB
    assert record.cost.most_at_once == 1
    assert record.overruns == 2
    assert told


def test_what_stays_after_an_overrun_was_not_the_calls(gate, meter):
    record = Record("f")
    run(gate, meter, record, SMALL, 80 * MIB, 9)
    inside = [begun(gate, record) for _ in range(2)]

    meter.takes(400 * MIB)
    meter.resident += 240 * MIB  # a cache that grew meanwhile
    for call in inside:
        gate.end(call, failed=False)
        gate.left(call)

    assert gate.passes(Call(record, SMALL))
    assert record.overruns == 0


def test_a_call_that_dies_without_an_end_is_forgotten(gate, meter):
    record = Record("f")
    call = begun(gate, record)
    assert not gate.passes(Call(record, SMALL))
    gone = weakref.ref(call)
    del call
    gc.collect()

    assert gone() is None
    assert gate.passes(Call(record, SMALL))


def test_a_meter_that_refuses_costs_the_measurement_and_not_the_call(gate, meter):
    record = Record("f")
    meter.broken = True

    booked = run(gate, meter, record, SMALL, 80 * MIB, 3)

    assert booked == [500 * MIB + 1] * 3
    assert record.cost.of(SMALL).points == ()


def test_a_forked_child_forgets_who_runs(gate, meter):
    record = Record("f")
    call = begun(gate, record)

    gate._forget_threads()

    assert gate.passes(Call(record, SMALL))
    gate.end(call, failed=False)
    gate.left(call)


def test_a_function_that_fails_is_not_measured_and_lets_others_in():
    breaker, _, _ = scripted(0.5)

    @breaker.guard(cost="auto")
    def work():
        raise KeyError

    for _ in range(5):
        with pytest.raises(KeyError):
            work()

    assert reserved(breaker) == 0
    assert breaker.learned()[next(iter(breaker.learned()))].calls == 5


def test_without_time_to_wait_whoever_is_not_alone_is_refused():
    breaker, _, _ = scripted(0.5)
    seen = []

    @breaker.guard(cost="auto")
    def work():
        seen.append(reserved(breaker))
        with pytest.raises(MemoryCircuitBreakerError):
            contextvars.Context().run(work)

    work()

    assert seen == [150 * MIB + 1]
    assert reserved(breaker) == 0


def test_a_guarded_function_inside_another_does_not_wait_for_it():
    breaker, _, _ = scripted(0.5)

    @breaker.guard(cost="auto", timeout=None)
    def inner():
        return "inner"

    @breaker.guard(cost="auto", timeout=None)
    def outer():
        return inner()

    assert outer() == "inner"
    assert reserved(breaker) == 0


def test_threads_and_tasks_wait_for_their_turn_and_all_are_done():
    breaker, _, _ = scripted(0.5)
    done = []

    @breaker.guard(cost="auto", timeout=SOON)
    def work(name):
        done.append(name)

    @breaker.guard(cost="auto", timeout=SOON)
    async def awork(name):
        await asyncio.sleep(0)
        done.append(name)

    async def main():
        await asyncio.gather(*(awork(n) for n in range(20)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    asyncio.run(main())
    for thread in threads:
        thread.join(SOON)

    assert sorted(done) == sorted([*range(20), *range(20)])
    assert reserved(breaker) == 0


def test_one_who_waits_on_a_loop_that_closed_holds_up_nobody():
    breaker, _, _ = scripted(0.5)
    inside, go, done = threading.Event(), threading.Event(), threading.Event()

    @breaker.guard(cost="auto", timeout=SOON)
    def work():
        inside.set()
        assert go.wait(SOON)

    @breaker.guard(cost="auto", timeout=None)
    async def awork():
        pass

    @breaker.guard(cost="auto", timeout=SOON)
    def last():
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(SOON)
    loop = asyncio.new_event_loop()
    task = loop.create_task(awork())
    task._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    behind = threading.Thread(target=last)
    behind.start()
    go.set()

    assert done.wait(SOON)
    thread.join(SOON)
    behind.join(SOON)


@kernel_peaks
@pytest.mark.parametrize("kind", ["plain", "coroutine", "generator", "async generator"])
def test_a_cost_is_learned_from_the_peak_of_calls(kind):
    breaker, _, _ = scripted(0.1, limit=4000 * MIB)
    seen = []

    def take():
        with mmap.mmap(-1, 64 * MIB) as block:  # never pages that the allocator had
            for _ in range(64):
                block.write(b"x" * MIB)
        seen.append(reserved(breaker) / MIB)

    async def atake():
        take()

    def step():
        yield take()

    async def astep():
        yield take()

    async def walk():
        return [each async for each in call()]

    call = breaker.guard(cost="auto")(
        {"plain": take, "coroutine": atake, "generator": step, "async generator": astep}[kind]
    )
    once = {
        "plain": call,
        "coroutine": lambda: asyncio.run(call()),
        "generator": lambda: list(call()),
        "async generator": lambda: asyncio.run(walk()),
    }[kind]
    for _ in range(4):
        once()

    assert seen[0] == pytest.approx(1400, abs=1)
    assert seen[1] == pytest.approx(64 * 2.03, rel=0.2)
    assert seen[2] == pytest.approx(64 * 1.28, rel=0.2)
    assert seen[3] == pytest.approx(64 * 1.14, rel=0.2)
    assert reserved(breaker) == 0
    (learned,) = breaker.learned().values()
    assert learned.calls == 4
    assert learned.peak_bytes == pytest.approx(64 * MIB, rel=0.2)


@kernel_peaks
def test_a_given_cost_that_is_too_low_is_told_once(caplog):
    breaker, _, _ = scripted(0.1, limit=4000 * MIB)
    told = []
    breaker.on_overrun.connect(told.append)

    @breaker.guard(cost="1 MiB")
    def take():
        with mmap.mmap(-1, 64 * MIB) as block:
            for _ in range(64):
                block.write(b"x" * MIB)

    for _ in range(3):
        take()

    (overrun,) = told
    assert overrun.function.endswith("take")
    assert overrun.booked_bytes == MIB
    assert overrun.peak_bytes == pytest.approx(64 * MIB, rel=0.2)
    assert breaker.statistics().overruns == 3
    assert caplog.text.count("give it a higher cost") == 1


@kernel_peaks
def test_a_cost_that_is_right_is_not_told_of():
    breaker, _, _ = scripted(0.1, limit=4000 * MIB)
    told = []
    breaker.on_overrun.connect(told.append)

    @breaker.guard(cost="64 MiB")
    def take():
        with mmap.mmap(-1, 64 * MIB) as block:
            for _ in range(64):
                block.write(b"x" * MIB)

    for _ in range(3):
        take()

    assert told == []
    (learned,) = breaker.learned().values()
    assert (learned.calls, learned.booked_bytes, learned.overruns) == (3, 64 * MIB, 0)


def test_an_overrun_beside_a_long_call_keeps_nobody_out_for_ever(gate, meter, monkeypatch):
    record, other = Record("f"), Record("stream")
    for each in (record, other):
        run(gate, meter, each, SMALL, 80 * MIB, 9)
    stream = begun(gate, other)
    call = begun(gate, record)
    meter.takes(600 * MIB)
    gate.end(call, failed=False)
    gate.left(call)
    assert not gate.passes(Call(record, SMALL))

    stream.since -= 6.0  # it runs on

    assert gate.passes(Call(record, SMALL))
    assert record.overruns == 1


def test_one_who_stood_before_the_gate_and_died_there_keeps_nobody_out(gate):
    standing = Standing(ThreadBell())
    gate._queue.append(weakref.ref(standing))  # an exception of a signal handler kept it from leaving
    assert not gate.is_first(None)

    del standing

    assert gate.is_first(None)


def test_calls_inside_of_what_others_wait_for_pass_the_gate(gate):
    waits = Call(Record("first"), SMALL)
    assert gate.passes(waits)  # alone; it waits for the bytes that are held around the next
    call = Call(Record("second"), SMALL)
    assert not gate.passes(call)

    call.lent_bytes = 45 * MIB

    assert gate.passes(call)
    assert not call.alone
    assert gate.book(call) == 45 * MIB


def test_one_that_should_be_measured_goes_in_beside_another_that_never_comes_out(gate):
    waits, call = Call(Record("first"), SMALL), Call(Record("second"), SMALL)
    assert gate.passes(waits)
    for each in (waits, call):
        each.since -= 6.0
        each.asked_since -= 6.0

    assert gate.passes(call)
    assert not call.alone


@kernel_peaks
def test_learned_calls_inside_of_reservations_wait_for_nobody_in_a_circle():
    breaker = MemoryCircuitBreaker(limit="2 GiB")
    inner = breaker.guard(cost="auto", timeout=SOON)(len)
    other = breaker.guard(cost="auto", timeout=SOON)(str.__len__)
    together, done = threading.Barrier(21), []

    def request():
        with breaker.reserve("45 MiB", timeout=SOON):
            together.wait(SOON)
            done.append(inner("text"))

    def job():
        together.wait(SOON)
        done.append(other("text"))

    threads = [threading.Thread(target=each) for each in [request] * 20 + [job]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SOON)

    assert done == [4] * 21
    assert reserved(breaker) == 0


def test_where_nothing_is_refused_nobody_waits_before_the_gate():
    breaker, _, _ = scripted(0.5, mode="observe")
    inside, out = threading.Event(), threading.Event()

    @breaker.guard(cost="auto", timeout=0)
    def work(waits):
        inside.set()
        return out.wait(SOON) if waits else True

    thread = threading.Thread(target=work, args=(True,))
    thread.start()
    assert inside.wait(SOON)
    try:
        assert [work(False) for _ in range(3)] == [True] * 3
    finally:
        out.set()
        thread.join(SOON)


def test_a_call_that_an_exception_took_out_is_out_though_the_exception_is_kept(gate, meter):
    record = Record("f")
    call = begun(gate, record)
    call.runs = False  # and nobody came to end it
    gate.left(call)

    assert gate._runs() == []
    run(gate, meter, record, SMALL, 80 * MIB, 2)
    assert record.cost.of(SMALL).solos == 2
