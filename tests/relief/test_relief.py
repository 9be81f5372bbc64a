from __future__ import annotations

import gc
import sys
import threading

import pytest

from memguard import limit_arenas, release_memory
from memguard.relief import Relief, default_steps, held_free_bytes
from memguard.relief._relief import run_steps
from memguard.testing import FakeClock

MIB = 1024**2


class Memory:
    """So many bytes in use; steps free some."""

    def __init__(self, used):
        self.used = used

    def read(self):
        return self.used

    def free(self, nbytes):
        def step():
            self.used -= nbytes

        return step


def test_each_step_is_measured():
    memory, clock = Memory(100 * MIB), FakeClock()

    report = run_steps([("a", memory.free(30 * MIB)), ("b", memory.free(5 * MIB))], memory.read, clock)

    assert [(step.name, step.freed_bytes) for step in report.steps] == [("a", 30 * MIB), ("b", 5 * MIB)]
    assert report.freed_bytes == 35 * MIB
    assert str(report) == "gave back 35 MiB in 0.000 s (a 30 MiB, b 5 MiB)"


def test_useful_relief_runs_again_after_twenty_times_its_duration():
    memory, clock = Memory(100 * MIB), FakeClock()

    def slow():
        clock.advance(0.1)
        memory.used -= 50 * MIB

    relief = Relief([("slow", slow)], clock)
    assert relief.attempt(memory.read)
    memory.used = 100 * MIB

    clock.advance(1.9)
    assert not relief.attempt(memory.read)
    clock.advance(0.2)
    assert relief.attempt(memory.read)
    assert relief.freed_bytes == 100 * MIB


def test_useless_relief_backs_off_up_to_half_a_minute():
    memory, clock = Memory(100 * MIB), FakeClock()
    relief = Relief([("nothing", lambda: None)], clock)
    pauses = []
    for _ in range(5):
        assert relief.attempt(memory.read)
        start = clock.now
        while not relief.due:
            clock.advance(1)
        pauses.append(clock.now - start)

    assert pauses == [5, 10, 20, 30, 30]


def test_a_finalizer_that_asks_again_during_relief_is_sent_away():
    memory, answers = Memory(100 * MIB), []
    relief = Relief([("again", lambda: answers.append(relief.attempt(memory.read)))])

    assert relief.attempt(memory.read)
    assert answers == [False]


def test_whoever_comes_while_one_runs_waits_for_it_and_does_not_run_another():
    memory = Memory(100 * MIB)
    inside, go = threading.Event(), threading.Event()
    runs = []

    def step():
        runs.append(1)
        inside.set()
        assert go.wait(30)

    relief = Relief([("step", step)])
    first = threading.Thread(target=relief.attempt, args=(memory.read,))
    first.start()
    assert inside.wait(30)
    answers = []
    second = threading.Thread(target=lambda: answers.append(relief.attempt(memory.read)))
    second.start()
    go.set()
    first.join(30)
    second.join(30)

    assert runs == [1]
    assert len(answers) == 1


def test_a_step_that_raises_leaves_the_way_free():
    relief = Relief([("bad", lambda: 1 / 0)])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            relief.attempt(lambda: 0)


def test_without_forced_collection_only_the_allocator_is_asked():
    assert [name for name, _ in default_steps(collect=False)] == ["trim"]


def test_garbage_in_cycles_is_collected():
    class Node:
        pass

    gc.collect()
    node = Node()
    node.me = node
    ghost = id(node)
    del node

    release_memory()

    assert not any(id(found) == ghost and isinstance(found, Node) for found in gc.get_objects())


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_the_allocator_says_what_it_holds_free():
    held = held_free_bytes()

    assert held is None or held >= 0


def test_the_users_word_on_arenas_is_never_overridden(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    assert not limit_arenas()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=5")
    assert not limit_arenas()


def test_without_glibc_arenas_are_not_limited(monkeypatch):
    monkeypatch.setattr("memguard.relief._allocator._glibc", lambda: None)
    assert not limit_arenas()


def test_no_arena_at_all_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        limit_arenas(0)
