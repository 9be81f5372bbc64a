"""
A pacer gives way when somebody waits, and only then.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import types
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard import LoopPacer, yield_to_loop
from memguard.streams import _slices
from memguard.streams._turns import turns_of_this_loop

SOON = 30.0
AT_ONCE = 1e-9  # of a slice: each tick is one that looks


async def tick(pacer):
    await pacer.tick()


async def sliced(pacer):
    """Step from one slice to the next."""
    slices = pacer.slices([1, 2], 1)
    await anext(slices)
    await anext(slices)


async def yielded(pacer):
    await yield_to_loop()


FORMS = pytest.mark.parametrize("give_way", [tick, sliced, yielded])


def counting_rounds(loop, monkeypatch):
    """Note each round of *loop*."""
    rounds = []
    run_once = loop._run_once
    monkeypatch.setattr(loop, "_run_once", lambda: (rounds.append(1), run_once())[1], raising=False)
    return rounds


@FORMS
def test_a_task_that_is_alone_is_never_parked(give_way, monkeypatch):
    async def main():
        rounds = counting_rounds(asyncio.get_running_loop(), monkeypatch)
        async with LoopPacer(AT_ONCE) as pacer:
            for _ in range(1000):
                await give_way(pacer)
        assert rounds == []

    asyncio.run(main())


@FORMS
def test_a_task_is_alone_again_when_the_others_are_gone(give_way, monkeypatch):
    async def main():
        rounds = counting_rounds(asyncio.get_running_loop(), monkeypatch)
        async with LoopPacer(AT_ONCE) as pacer:
            other = asyncio.create_task(asyncio.sleep(0))
            await give_way(pacer)
            assert other.done()
            await give_way(pacer)
            rounds.clear()
            for _ in range(100):
                await give_way(pacer)
        assert rounds == []

    asyncio.run(main())


@FORMS
def test_a_timer_that_is_not_due_does_not_park_a_task(give_way, monkeypatch):
    async def main():
        loop = asyncio.get_running_loop()
        rounds = counting_rounds(loop, monkeypatch)
        timer = loop.call_later(1000, lambda: None)
        async with LoopPacer(AT_ONCE) as pacer:
            await give_way(pacer)
        assert rounds == []
        timer.cancel()

    asyncio.run(main())


@FORMS
def test_a_ready_callback_goes_ahead(give_way):
    async def main():
        seen = []
        async with LoopPacer(AT_ONCE) as pacer:
            asyncio.get_running_loop().call_soon(seen.append, 1)
            await give_way(pacer)
            assert seen == [1]

    asyncio.run(main())


@FORMS
def test_a_timer_that_is_due_goes_ahead(give_way):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        async with LoopPacer(AT_ONCE) as pacer:
            loop.call_at(loop.time() - 1, seen.append, 1)
            await give_way(pacer)
            assert seen == [1]

    asyncio.run(main())


@FORMS
def test_what_another_thread_hands_to_the_loop_goes_ahead(give_way):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(seen.append, 1))
        async with LoopPacer(AT_ONCE) as pacer:
            thread.start()
            thread.join()
            await give_way(pacer)
            assert seen == [1]

    asyncio.run(main())


@FORMS
def test_data_that_have_come_go_ahead_and_looking_takes_none_of_them(give_way):
    async def main():
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        here.setblocking(False)
        seen = []
        with here, there:
            async with LoopPacer(AT_ONCE) as pacer:
                loop.add_reader(here, lambda: seen.append(here.recv(10)))
                await give_way(pacer)
                assert seen == []
                there.send(b"data")
                await give_way(pacer)
                assert seen == [b"data"]
            loop.remove_reader(here)

    asyncio.run(main())


@FORMS
def test_a_cancellation_that_stands_in_no_queue_arrives(give_way):
    async def main():
        async with LoopPacer(AT_ONCE) as pacer:
            await give_way(pacer)
            asyncio.current_task().cancel()  # as a signal handler does, between two lines
            with pytest.raises(asyncio.CancelledError):
                await give_way(pacer)

    asyncio.run(main())


@FORMS
@pytest.mark.parametrize("hidden", ["queue", "selector"])
def test_a_loop_that_cannot_be_looked_at_is_given_way_to(give_way, hidden, monkeypatch):
    async def main():
        turns = turns_of_this_loop()
        turns._selector = None
        if hidden == "queue":
            turns._ready = turns._timers = None
        rounds = counting_rounds(asyncio.get_running_loop(), monkeypatch)
        async with LoopPacer(AT_ONCE) as pacer:
            await asyncio.wait_for(give_way(pacer), SOON)
        assert rounds

    asyncio.run(main())


def test_a_proactor_is_not_looked_at():
    # Its select() takes the events that it tells, so looking would lose them.
    class Proactor:
        def select(self, timeout):
            raise AssertionError("looked")

    async def main():
        from memguard.streams._turns import Turns

        loop = asyncio.get_running_loop()
        selector, loop._selector = loop._selector, Proactor()
        try:
            assert Turns(loop).others_wait()
        finally:
            loop._selector = selector

    asyncio.run(main())


# ----- slices


@given(st.integers(0, 500), st.none() | st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_slices_together_are_the_rows_in_order(count, size):
    async def main():
        async with LoopPacer() as pacer:
            return [part async for part in pacer.slices(iter(range(count)), size)]

    parts = asyncio.run(main())

    assert sum(parts, []) == list(range(count))
    assert all(parts)
    if size is not None:
        assert all(len(part) == size for part in parts[:-1])


@pytest.mark.parametrize("row_seconds", [1e-5, 5e-5, 1e-3])
def test_a_slice_takes_about_100_microseconds(row_seconds, monkeypatch):
    now = 0.0
    monkeypatch.setattr(_slices, "time", types.SimpleNamespace(perf_counter=lambda: now))

    async def main():
        nonlocal now
        lengths = []
        async with LoopPacer() as pacer:
            async for part in pacer.slices(range(1000)):
                now += len(part) * row_seconds
                lengths.append(len(part))
        return lengths[:-1]

    lengths = asyncio.run(main())

    settled = lengths[5:]
    assert all(length * row_seconds <= 1.01e-4 or length == 1 for length in lengths)
    assert all((length + 1) * row_seconds > 0.9e-4 for length in settled)


def test_slices_and_ticks_take_turns():
    turns = []

    async def in_slices(name):
        async with LoopPacer(AT_ONCE) as pacer:
            async for _ in pacer.slices(range(5), 1):
                turns.append(name)

    async def in_ticks(name):
        async with LoopPacer(AT_ONCE) as pacer:
            for _ in range(5):
                await pacer.tick()
                turns.append(name)

    async def main():
        await asyncio.gather(in_slices("a"), in_ticks("b"), in_slices("c"))

    asyncio.run(main())

    assert turns == list("abc" * 5)


def test_slices_outside_the_block_say_so():
    with pytest.raises(RuntimeError, match="async with"):
        LoopPacer().slices([])


def test_a_loop_that_is_closed_while_tasks_are_parked_is_let_go_with_all_that_they_hold():
    class Held:
        """Stands for bytes."""

    async def compute():
        held = Held()
        kept.append(weakref.ref(held))
        while True:
            await yield_to_loop()

    async def rounds():
        for _ in range(20):
            await asyncio.sleep(0)

    kept = []
    loop = asyncio.new_event_loop()
    kept.append(weakref.ref(loop))
    for _ in range(3):
        loop.create_task(compute())._log_destroy_pending = False
    loop.run_until_complete(rounds())
    loop.close()
    del loop
    gc.collect()

    assert [each() for each in kept] == [None] * 4
