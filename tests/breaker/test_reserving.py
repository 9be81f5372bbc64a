from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import threading
import time

import pytest
from test_breaker import MIB, scripted

from memguard import MemoryCircuitBreaker, MemoryCircuitBreakerError, MemoryUsage

SOON = 30.0
FULL_OF_FREE_PAGES = MemoryUsage(
    157 * MIB, 157 * MIB, 157 * MIB, 200 * MIB, "scripted", 0.0, malloc_free_bytes=140 * MIB
)


def always_later():
    """A clock by which every reading is stale."""
    return iter(range(10**9)).__next__


def reserved(breaker):
    return breaker.statistics().reserved_bytes


def wait_until_waiting(breaker, count):
    deadline = threading.Event()
    for _ in range(30_000):
        if breaker.statistics().waiting == count:
            return
        deadline.wait(0.001)
    raise AssertionError(f"{breaker.statistics().waiting} wait, not {count}")


def test_bytes_are_held_from_entering_to_leaving():
    breaker, _, _ = scripted(0.5)
    reservation = breaker.reserve("100 MiB")
    assert reserved(breaker) == 0

    with reservation as held:
        assert reserved(breaker) == 100 * MIB
        assert held.nbytes == 100 * MIB
    assert reserved(breaker) == 0
    held.release()
    assert reserved(breaker) == 0


def test_callers_together_cannot_pass_the_same_check():
    breaker, _, _ = scripted(0.5)

    with breaker.reserve("200 MiB"), pytest.raises(MemoryCircuitBreakerError) as caught:
        with breaker.reserve("100 MiB"):
            pass
        contextvars.Context().run(breaker.reserve("150 MiB").__enter__)

    assert caught.value.requested_bytes == 150 * MIB
    assert caught.value.reserved_bytes == 200 * MIB
    assert "200 MiB held reserved by others" in str(caught.value)


def test_what_can_never_fit_is_refused_at_once_whatever_the_timeout():
    breaker, _, _ = scripted(0.1)

    with pytest.raises(MemoryCircuitBreakerError, match="can never fit"):
        breaker.reserve("801 MiB", timeout=None).__enter__()


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_cannot_be_meant_is_refused(timeout):
    breaker, _, _ = scripted(0.1)
    with pytest.raises(ValueError, match="timeout"):
        breaker.reserve(1, timeout=timeout)
    with pytest.raises(TypeError, match="timeout"):
        breaker.reserve(1, timeout="1")


def test_a_timeout_longer_than_any_is_for_ever():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(1, timeout=10**400):
        assert reserved(breaker) == 1


def test_a_reservation_is_entered_once():
    breaker, _, _ = scripted(0.1)
    with breaker.reserve(1) as held, pytest.raises(RuntimeError, match="entered once"):
        held.__enter__()
    with pytest.raises(RuntimeError, match="entered once"):
        held.__enter__()


def test_an_error_inside_gives_the_bytes_back():
    breaker, _, _ = scripted(0.1)
    with pytest.raises(ZeroDivisionError), breaker.reserve(MIB):
        1 / 0  # noqa: B018

    assert reserved(breaker) == 0


def test_what_was_dropped_without_being_left_comes_back():
    breaker, _, _ = scripted(0.5)
    context = contextvars.Context()
    context.run(breaker.reserve("200 MiB").__enter__)
    del context
    gc.collect()

    with breaker.reserve("1 MiB"):
        assert reserved(breaker) == MIB


def test_a_nested_reservation_draws_from_the_one_around_it():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(100 * MIB) as outer:
        with breaker.reserve(60 * MIB), breaker.reserve(50 * MIB):
            assert reserved(breaker) == 100 * MIB  # 60 drawn from outer, 50 from that
        with breaker.reserve(130 * MIB):
            assert reserved(breaker) == 130 * MIB
        assert reserved(breaker) == 100 * MIB
        outer.release()
        with breaker.reserve(20 * MIB):
            assert reserved(breaker) == 20 * MIB
    assert reserved(breaker) == 0


def test_bytes_drawn_outlive_the_one_they_were_drawn_from():
    breaker, _, _ = scripted(0.5)
    outer = breaker.reserve(100 * MIB)
    outer.__enter__()
    inner = breaker.reserve(60 * MIB)
    inner.__enter__()
    outer.release()
    assert reserved(breaker) == 60 * MIB

    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)
    assert reserved(breaker) == 0


def test_what_another_one_covers_is_not_asked_again_while_open():
    breaker, sampler, _ = scripted(0.5)
    with breaker.reserve(100 * MIB):
        sampler.then(0.9)
        breaker.tick()
        with breaker.reserve(50 * MIB), breaker.reserve(0):
            assert reserved(breaker) == 100 * MIB


def test_a_held_reservation_can_grow_and_shrink():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(100 * MIB) as held:
        held.resize("250 MiB")
        assert (held.nbytes, reserved(breaker)) == (250 * MIB, 250 * MIB)
        with pytest.raises(MemoryCircuitBreakerError):
            held.resize("400 MiB")
        assert reserved(breaker) == 250 * MIB
        held.resize("10 MiB")
        assert (held.nbytes, reserved(breaker)) == (10 * MIB, 10 * MIB)
        with breaker.reserve(5 * MIB), pytest.raises(ValueError, match="nested"):
            held.resize(MIB)
    assert reserved(breaker) == 0
    with pytest.raises(RuntimeError, match="released"):
        held.resize(1)


def test_threads_are_served_first_come_first_served():
    breaker, _, _ = scripted(0.5)
    order = []
    first = breaker.reserve(300 * MIB)
    first.__enter__()

    def work(number, nbytes):
        with breaker.reserve(nbytes, timeout=SOON):
            order.append(number)

    threads = []
    for number, nbytes in enumerate([200 * MIB, 150 * MIB, 250 * MIB]):  # one at a time
        thread = threading.Thread(target=work, args=(number, nbytes), daemon=True)
        thread.start()
        threads.append(thread)
        wait_until_waiting(breaker, number + 1)

    with pytest.raises(MemoryCircuitBreakerError):
        contextvars.Context().run(breaker.reserve(1).__enter__)  # nobody overtakes, timeout=0 included
    assert order == []
    first.__exit__(None, None, None)
    for thread in threads:
        thread.join(SOON)

    assert order == [0, 1, 2]
    assert reserved(breaker) == 0


def test_a_wait_ends_with_its_timeout_and_leaves_no_trace():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(300 * MIB), pytest.raises(MemoryCircuitBreakerError) as caught:
        contextvars.Context().run(breaker.reserve(2 * MIB, timeout=0.01).__enter__)

    assert caught.value.reserved_bytes == 300 * MIB
    assert breaker.statistics().waiting == 0
    assert reserved(breaker) == 0


def test_a_waiter_goes_in_when_memory_falls_and_nobody_releases():
    breaker, sampler, _ = scripted(0.79, clock=always_later())
    entered = threading.Event()

    def work():
        with breaker.reserve(100 * MIB, timeout=SOON):
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    wait_until_waiting(breaker, 1)
    sampler.then(0.3)

    assert entered.wait(SOON)
    thread.join(SOON)


def test_reserve_nothing_waits_until_the_circuit_admits_work():
    breaker, sampler, _ = scripted(0.9)
    breaker.tick()
    entered = threading.Event()

    def work():
        with breaker.reserve(0, timeout=SOON):
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    wait_until_waiting(breaker, 1)
    sampler.then(0.3)

    assert entered.wait(SOON)
    thread.join(SOON)


def test_a_plain_with_that_would_wait_on_a_loop_is_refused():
    breaker, _, _ = scripted(0.5)

    async def main():
        with pytest.raises(RuntimeError, match="use `async with`"), breaker.reserve(1, timeout=1):
            pass
        with breaker.reserve(1):
            pass

    asyncio.run(main())


def test_tasks_wait_in_line_and_none_is_lost():
    breaker, _, _ = scripted(0.5)
    order, most = [], []

    async def work(number):
        async with breaker.reserve(100 * MIB, timeout=SOON):
            most.append(reserved(breaker))
            await asyncio.sleep(0)
            order.append(number)

    async def main():
        await asyncio.gather(*(work(n) for n in range(20)))

    asyncio.run(main())

    assert order == sorted(order)
    assert max(most) == 300 * MIB
    assert reserved(breaker) == 0


def test_a_cancelled_waiter_hands_its_turn_on():
    breaker, _, _ = scripted(0.5)
    done = []

    async def work(number, nbytes):
        async with breaker.reserve(nbytes, timeout=None):
            done.append(number)

    async def main():
        async with breaker.reserve(300 * MIB):
            # Tasks of their own context: not nested in this one.
            new = contextvars.Context()
            tasks = [asyncio.get_running_loop().create_task(work(n, 300 * MIB), context=new.copy()) for n in range(3)]
            while breaker.statistics().waiting < 3:
                await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.wait([tasks[0]])
            assert breaker.statistics().waiting == 2
        await asyncio.wait_for(asyncio.gather(*tasks[1:]), SOON)

    asyncio.run(main())

    assert done == [1, 2]
    assert reserved(breaker) == 0


def test_a_task_that_is_cancelled_as_it_is_admitted_loses_no_byte():
    breaker, _, _ = scripted(0.5)

    async def work():
        async with breaker.reserve(300 * MIB, timeout=None):
            await asyncio.sleep(SOON)

    async def main():
        first = breaker.reserve(300 * MIB)
        context = contextvars.Context()
        context.run(first.__enter__)
        task = asyncio.create_task(work())
        while breaker.statistics().waiting < 1:
            await asyncio.sleep(0)
        first.release()  # books for the task, which has not run yet
        assert reserved(breaker) == 300 * MIB
        task.cancel()
        await asyncio.wait([task])
        assert reserved(breaker) == 0

    asyncio.run(main())


def test_threads_and_tasks_share_one_line():
    breaker, _, _ = scripted(0.5)
    entered = threading.Event()

    def in_thread():
        with breaker.reserve(300 * MIB, timeout=SOON):
            entered.set()

    async def main():
        async with breaker.reserve(300 * MIB):
            thread = threading.Thread(target=in_thread)
            thread.start()
            while breaker.statistics().waiting < 1:
                await asyncio.sleep(0)
        await asyncio.to_thread(thread.join, SOON)
        async with breaker.reserve(300 * MIB, timeout=SOON):
            pass

    asyncio.run(main())

    assert entered.is_set()


def test_a_waiter_whose_loop_died_does_not_hold_up_the_line():
    breaker, _, _ = scripted(0.5)
    holder = contextvars.Context()
    first = breaker.reserve(300 * MIB)
    holder.run(first.__enter__)
    loop = asyncio.new_event_loop()

    async def wait():
        async with breaker.reserve(300 * MIB, timeout=None):
            raise AssertionError("its loop never ran again")

    coroutine = wait()
    task = loop.create_task(coroutine)
    while breaker.statistics().waiting < 1:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    first.release()
    task._log_destroy_pending = False

    with contextvars.copy_context().run(lambda: breaker.reserve(300 * MIB, timeout=SOON)):
        assert reserved(breaker) == 300 * MIB
    coroutine.close()


def test_what_a_task_of_a_dead_loop_holds_comes_back_though_it_waits_for_more_behind_somebody():
    breaker, _, _ = scripted(0.5)
    loop = asyncio.new_event_loop()
    go = asyncio.Event()

    async def hold_and_wait():
        held = await breaker.aacquire(200 * MIB)
        await go.wait()
        await breaker.aacquire(50 * MIB, timeout=None)
        held.release()

    def first_in_line():
        with breaker.reserve(250 * MIB, timeout=SOON):
            pass

    loop.create_task(hold_and_wait())._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    thread = threading.Thread(target=first_in_line)
    thread.start()
    wait_until_waiting(breaker, 1)
    go.set()
    while breaker.statistics().waiting < 2:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    deadline = time.monotonic() + SOON
    while thread.is_alive() and time.monotonic() < deadline:
        gc.collect()
        thread.join(0.01)

    assert (reserved(breaker), breaker.statistics().waiting, breaker.statistics().refused) == (0, 0, 0)


def test_what_a_task_took_along_from_a_loop_that_is_closed_now_stays_its_owners():
    breaker, _, _ = scripted(0.5)
    first = breaker.acquire(300 * MIB)
    kept, seen = [], []

    async def wait():
        kept.append(await breaker.aacquire(100 * MIB, timeout=SOON))

    async def main():
        task = asyncio.create_task(wait())
        while breaker.statistics().waiting < 1:
            await asyncio.sleep(0)
        seen.extend(breaker._desk.queue)
        first.release()
        await task

    asyncio.run(main())
    breaker._desk.queue.extend(seen)  # another thread that serves may have looked at it just before

    assert breaker.acquire(1).release() is None
    breaker._queue.prune()
    assert reserved(breaker) == 100 * MIB
    kept[0].release()
    assert (reserved(breaker), breaker.statistics().waiting) == (0, 0)


def test_random_threads_and_tasks_never_exceed_the_line_and_leak_nothing():
    """
    A short form of the race that the long suite runs 100,000 times.
    """
    breaker, _, _ = scripted(0.5)
    over = []

    def look():
        if reserved(breaker) > 300 * MIB:
            over.append(1)

    def thread_work(seed):
        dice = random.Random(seed)
        for _ in range(60):
            try:
                with breaker.reserve(dice.randrange(1, 150) * MIB, timeout=dice.choice([0, 0.001, 5])):
                    look()
                    if dice.random() < 0.2:
                        raise ValueError
            except (MemoryCircuitBreakerError, ValueError):
                pass

    async def task_work(seed):
        dice = random.Random(seed)
        for _ in range(60):
            try:
                async with asyncio.timeout(dice.choice([0.0005, 5])):
                    async with breaker.reserve(dice.randrange(1, 150) * MIB, timeout=dice.choice([0, 0.001, None])):
                        look()
                        await asyncio.sleep(0)
            except (MemoryCircuitBreakerError, TimeoutError):
                pass

    async def main():
        await asyncio.gather(*(task_work(n) for n in range(10)))

    threads = [threading.Thread(target=thread_work, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    asyncio.run(main())
    for thread in threads:
        thread.join(60)

    assert over == []
    assert (reserved(breaker), breaker.statistics().waiting, breaker._desk.on_ramp) == (0, 0, 0)


def test_relief_runs_for_a_request_that_does_not_fit_whatever_the_level(monkeypatch):
    memory = []
    monkeypatch.setattr("memguard.relief._relief.gc.collect", lambda: memory[0].then(0.1))
    breaker, sampler, _ = scripted(0.5, relief=True)
    memory.append(sampler)
    breaker.tick()

    with breaker.reserve(400 * MIB):
        assert breaker.statistics().relief_runs == 1


def test_an_async_request_that_does_not_fit_waits_for_relief_in_a_thread(monkeypatch):
    where, memory = [], []

    def collect():
        where.append(threading.current_thread())
        memory[0].then(0.1)

    monkeypatch.setattr("memguard.relief._relief.gc.collect", collect)
    breaker, sampler, _ = scripted(0.5, relief=True)
    memory.append(sampler)
    breaker.tick()

    async def main():
        async with breaker.reserve(400 * MIB):
            pass

    asyncio.run(main())

    assert where[0] is not threading.main_thread()


def test_jobs_go_in_on_what_the_allocator_holds_free_as_far_as_the_highest_line():
    """
    157 of 200 MiB in use, all of it free pages of the allocator: nothing else would ever let the next job in.
    """
    breaker, _, _ = scripted(FULL_OF_FREE_PAGES)

    with breaker.reserve(9 * MIB):
        other = breaker.reserve(9 * MIB)
        contextvars.Context().run(other.__enter__)
        with pytest.raises(MemoryCircuitBreakerError):  # 175 MiB is the highest line, if none of it was taken again
            contextvars.Context().run(breaker.reserve(9 * MIB).__enter__)
        other.release()
    with breaker.reserve(9 * MIB):
        pass
    assert reserved(breaker) == 0


def test_what_the_allocator_holds_free_never_leads_over_the_limit():
    breaker, _, _ = scripted(FULL_OF_FREE_PAGES)

    with pytest.raises(MemoryCircuitBreakerError):
        breaker.reserve(50 * MIB).__enter__()


def test_those_who_wait_go_in_on_what_is_held_free_two_at_a_time_at_most():
    breaker, _, _ = scripted(FULL_OF_FREE_PAGES)
    done = []

    def work():
        with breaker.reserve(9 * MIB, timeout=SOON):
            done.append(reserved(breaker))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)

    assert len(done) == 8
    assert set(done) <= {9 * MIB, 18 * MIB}


def test_a_nested_reservation_that_waits_goes_before_those_who_hold_nothing():
    """
    What its caller holds comes back only when it can go on.
    """
    breaker, _, _ = scripted(0.5)
    order = []
    other = breaker.reserve(200 * MIB)
    contextvars.Context().run(other.__enter__)

    def nested():
        with breaker.reserve(100 * MIB):
            ready.set()
            assert go.wait(SOON)
            with breaker.reserve(150 * MIB, timeout=SOON):
                order.append("nested")

    def plain():
        with breaker.reserve(200 * MIB, timeout=SOON):
            order.append("plain")

    ready, go = threading.Event(), threading.Event()
    threads = [threading.Thread(target=work) for work in (nested, plain)]
    threads[0].start()
    assert ready.wait(SOON)
    threads[1].start()
    wait_until_waiting(breaker, 1)
    go.set()
    wait_until_waiting(breaker, 2)
    other.release()
    for thread in threads:
        thread.join(SOON)

    assert order == ["nested", "plain"]
    assert reserved(breaker) == 0


def test_what_was_drawn_comes_back_when_the_rest_is_refused():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(100 * MIB):
        with pytest.raises(MemoryCircuitBreakerError):
            breaker.reserve(401 * MIB).__enter__()

        with breaker.reserve(100 * MIB):
            assert reserved(breaker) == 100 * MIB


def test_a_nested_reservation_that_shrinks_gives_back_to_the_one_around_it():
    breaker, _, _ = scripted(0.5)
    with breaker.reserve(100 * MIB) as outer:
        with breaker.reserve(80 * MIB) as inner:
            inner.resize(10 * MIB)
            assert reserved(breaker) == 100 * MIB
            outer.resize(10 * MIB)  # refused below what is drawn
            assert reserved(breaker) == 10 * MIB
        assert reserved(breaker) == 10 * MIB
    assert reserved(breaker) == 0


def test_a_reservation_may_be_left_in_another_context_than_it_was_entered_in():
    breaker, _, _ = scripted(0.5)
    held = breaker.reserve(MIB)
    contextvars.copy_context().run(held.__enter__)

    held.__exit__(None, None, None)

    assert reserved(breaker) == 0
    assert repr(held) == f"<Reservation of {MIB} bytes, released>"


def test_a_plain_with_on_a_loop_is_refused_and_has_relief_run_elsewhere(monkeypatch):
    ran, where = threading.Event(), []

    def collect():
        where.append(threading.current_thread())
        ran.set()

    monkeypatch.setattr("memguard.relief._relief.gc.collect", collect)
    breaker, _, _ = scripted(0.5, relief=True)

    async def main():
        with pytest.raises(MemoryCircuitBreakerError), breaker.reserve(400 * MIB):
            pass

    asyncio.run(main())

    assert ran.wait(SOON)
    assert where[0] is not threading.main_thread()


def test_a_relief_outlives_the_loop_that_waits_for_it(monkeypatch):
    inside, go = threading.Event(), threading.Event()
    threads = []

    def collect():
        threads.append(threading.current_thread())
        inside.set()
        assert go.wait(SOON)

    monkeypatch.setattr("memguard.relief._relief.gc.collect", collect)
    breaker, _, _ = scripted(0.5, relief=True)
    loop = asyncio.new_event_loop()

    async def work():
        async with breaker.reserve(400 * MIB):
            raise AssertionError("its loop never ran again")

    coroutine = work()
    task = loop.create_task(coroutine)
    while not inside.is_set():
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    go.set()
    threads[0].join(SOON)

    assert breaker.statistics().relief_runs == 1
    task._log_destroy_pending = False
    coroutine.close()


def kept(used, free):
    """A reading of 200 MiB in which the allocator holds *free* of *used* MiB."""
    return MemoryUsage(used * MIB, used * MIB, used * MIB, 200 * MIB, "scripted", 0.0, malloc_free_bytes=free * MIB)


def test_what_is_held_free_is_no_room_where_it_is_too_little():
    breaker, _, _ = scripted(kept(170, 12))

    with pytest.raises(MemoryCircuitBreakerError):
        breaker.reserve(5 * MIB).__enter__()
    with breaker.reserve(2 * MIB):
        pass


def test_of_two_that_look_at_what_is_held_free_at_once_one_goes_in():
    looks = []

    def read():
        looks.append(1)
        if len(looks) == 3:  # while the first takes the reading that it would go in by
            second.append(breaker.acquire(MIB))
        return kept(185, 0) if len(looks) == 1 else kept(170, 140)

    breaker = MemoryCircuitBreaker(sampler=read, relief=False, clock=always_later())
    breaker.tick()
    second = []

    with pytest.raises(MemoryCircuitBreakerError):
        breaker.reserve(MIB).__enter__()

    assert reserved(breaker) == MIB
    second[0].release()


def test_one_who_waits_goes_in_on_what_is_held_free_also_while_the_circuit_is_open():
    breaker, sampler, _ = scripted(kept(185, 0), clock=always_later())
    states = []

    def work():
        with breaker.reserve(5 * MIB, timeout=SOON):
            states.append(breaker.state)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until_waiting(breaker, 1)
    sampler.then(kept(170, 140))
    thread.join(SOON)

    assert states == ["open"]
    assert (reserved(breaker), breaker._desk.on_ramp) == (0, 0)
