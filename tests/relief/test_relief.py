from __future__ import annotations

import _thread
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

import memguard.relief._allocator as allocator
import memguard.sampling._heap as heap
from memguard import allocator_usage, limit_arenas, release_memory
from memguard.relief import AllocatorUsage, HeapCounts, Relief, Step, Tops, _tops, default_steps, held_free_bytes
from memguard.relief._relief import run_steps
from memguard.relief._shrinking import Shrinkables
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

    report = run_steps([Step("a", memory.free(30 * MIB)), Step("b", memory.free(5 * MIB))], memory.read, clock)

    assert [(step.name, step.freed_bytes) for step in report.steps] == [("a", 30 * MIB), ("b", 5 * MIB)]
    assert report.freed_bytes == 35 * MIB
    assert str(report) == "gave back 35 MiB in 0.000 s (a 30 MiB, b 5 MiB)"


def test_useful_relief_runs_again_after_twenty_times_its_duration():
    memory, clock = Memory(100 * MIB), FakeClock()

    def slow():
        clock.advance(0.1)
        memory.used -= 50 * MIB

    relief = Relief([Step("slow", slow)], clock)
    assert relief.attempt(memory.read)
    memory.used = 100 * MIB

    clock.advance(1.9)
    assert not relief.attempt(memory.read)
    clock.advance(0.2)
    assert relief.attempt(memory.read)
    assert relief.freed_bytes == 100 * MIB


def test_useless_relief_backs_off_up_to_half_a_minute():
    memory, clock = Memory(100 * MIB), FakeClock()
    relief = Relief([Step("nothing", lambda: None)], clock)
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
    relief = Relief([Step("again", lambda: answers.append(relief.attempt(memory.read)))])

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

    relief = Relief([Step("step", step)])
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


def test_a_step_that_raises_is_logged_and_the_others_run(caplog):
    memory, clock = Memory(100 * MIB), FakeClock()
    relief = Relief([Step("bad", lambda: 1 / 0), Step("good", memory.free(30 * MIB))], clock)

    for _ in range(2):
        assert relief.attempt(memory.read)
        clock.advance(60)

    assert relief.freed_bytes == 60 * MIB
    assert caplog.text.count("the relief step 'bad' failed") == 2


def test_an_exception_of_a_signal_handler_in_a_step_leaves_the_way_free():
    clock, interrupts = FakeClock(), [KeyboardInterrupt()]

    def step():
        if interrupts:
            raise interrupts.pop()

    relief = Relief([Step("step", step)], clock)
    with pytest.raises(KeyboardInterrupt):
        relief.attempt(lambda: 0)

    assert relief.attempt(lambda: 0)


def test_what_cannot_be_measured_is_relieved_all_the_same(caplog):
    """Who asks for relief wants room, not an error."""
    ran, clock = [], FakeClock()

    def broken(*_, **__):
        raise OSError("no figures today")

    relief = Relief([Step("step", lambda: ran.append(1), worth=broken)], clock)

    assert relief.attempt(broken)
    clock.advance(60)
    assert relief.attempt(broken, wanted=broken)
    assert ran == [1, 1]
    assert "no figures today" in caplog.text


def test_a_log_handler_that_fails_stops_no_relief(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no space left for logs")

    monkeypatch.setattr("memguard.logs._logger.log", broken)

    assert Relief([Step("bad", lambda: 1 / 0)]).attempt(lambda: 0)


def test_nobody_waits_for_a_relief_for_ever(monkeypatch):
    """It may wait for something that we hold, unknown to both."""
    monkeypatch.setattr("memguard.relief._relief._LONGEST_WAIT_SECONDS", 0.01)
    inside, go = threading.Event(), threading.Event()

    def step():
        inside.set()
        assert go.wait(30)

    relief = Relief([Step("step", step)])
    first = threading.Thread(target=relief.attempt, args=(lambda: 0,))
    first.start()
    assert inside.wait(30)

    assert not relief.attempt(lambda: 0)
    go.set()
    first.join(30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_in_a_forked_child_a_relief_of_another_thread_is_in_nobody_s_way():
    inside, go = threading.Event(), threading.Event()
    steps = [lambda: inside.set() or go.wait(30), lambda: None]

    def step():
        steps.pop(0)()

    relief = Relief([Step("step", step)], FakeClock())
    first = threading.Thread(target=relief.attempt, args=(lambda: 0,))
    first.start()
    assert inside.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if relief.attempt(lambda: 0) and not steps else 1)
    go.set()
    first.join(30)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_finalizers_that_ask_for_relief_while_it_collects_are_sent_away():
    relief = Relief(default_steps(), FakeClock())
    answers = []

    class Asks:
        def __init__(self):
            self.me = self

        def __del__(self):
            answers.append(relief.attempt(lambda: 0))

    gc.collect()
    gc.disable()
    for _ in range(3):
        Asks()
    gc.enable()
    relief.attempt(lambda: 0)

    assert answers == [False] * 3


class Cache:
    """Holds so many bytes, and tells what it is told to tell."""

    shrink_under_pressure = True

    def __init__(self, held=100, value=1.0, gives=None):
        self.held, self.value, self.gives = held, value, gives
        self.asked = []

    def held_bytes(self):
        return self.held() if callable(self.held) else self.held

    def value_per_byte(self):
        return self.value() if callable(self.value) else self.value

    def give_back(self, nbytes):
        self.asked.append(nbytes)
        return nbytes if self.gives is None else self.gives()


def broken():
    raise RuntimeError("out of order")


class Undecided(Cache):
    @property
    def shrink_under_pressure(self):
        raise RuntimeError("out of order")


@pytest.mark.parametrize(
    "odd",
    [
        Cache(held=broken),
        Cache(held=-5),
        Cache(held=float("nan")),
        Cache(held=float("inf")),
        Cache(held="much"),
        Cache(value=broken),
        Cache(value=float("nan")),
        Cache(gives=broken),
        Cache(gives=lambda: -100),
        Cache(gives=lambda: float("nan")),
        Cache(gives=lambda: None),
        Cache(gives=lambda: 10**30),
        Undecided(),
    ],
    ids=[
        "held raises", "held negative", "held nan", "held infinite", "held text", "value raises", "value nan",
        "gives raises", "gives less than nothing", "gives nan", "gives nothing", "gives more than it held", "undecided",
    ],
)  # fmt: skip
def test_a_cache_that_is_out_of_order_is_passed_over_and_said_once(odd, caplog):
    caches, good = Shrinkables(), Cache(held=1000, value=2.0)
    caches.add(odd)
    caches.add(good)

    assert 1000 <= caches.held_bytes() <= 1100
    assert 1000 <= caches.shrinkable_bytes() <= 1100
    for _ in range(2):
        assert 400 <= caches.shrink(500) <= 600
    assert sum(good.asked) >= 800
    assert caplog.text.count("is passed over") <= 1


def test_a_cache_that_gave_nothing_is_made_up_for_by_the_others():
    caches, bad, good = Shrinkables(), Cache(gives=broken), Cache(held=1000, value=2.0)
    caches.add(bad)
    caches.add(good)

    assert caches.shrink(300) == 300
    assert good.asked == [300]


def test_where_a_log_handler_fails_caches_shrink_all_the_same(monkeypatch):
    def fail(*_):
        raise RuntimeError("no space left for logs")

    monkeypatch.setattr("memguard.logs._logger.log", fail)
    caches, bad = Shrinkables(), Cache(held=broken)
    caches.add(bad)

    assert caches.held_bytes() == 0


def test_without_forced_collection_only_the_allocator_is_asked():
    assert [step.name for step in default_steps(collect=False)] == ["trim", "tops"]


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


@pytest.fixture
def c_library(monkeypatch):
    """Return a function that puts another C library, or none, in the place of the one in use."""

    def put(library):
        monkeypatch.setattr(heap, "glibc", lambda: library)
        monkeypatch.setattr(allocator, "glibc", lambda: library)
        monkeypatch.setattr("memguard.relief._tops.glibc", lambda: library)

    return put


@pytest.fixture
def no_c_library(c_library):
    c_library(None)


@pytest.mark.usefixtures("no_c_library")
def test_without_glibc_arenas_are_not_limited():
    assert not limit_arenas()


def test_no_arena_at_all_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        limit_arenas(0)


def test_a_step_that_tells_what_it_is_worth_is_asked_instead_of_waiting():
    memory, clock, worth = Memory(100 * MIB), FakeClock(), [20 * MIB]
    relief = Relief([Step("worth", lambda: None, worth=lambda: worth[0])], clock)
    assert relief.attempt(memory.read)

    worth[0] = 27 * MIB
    assert not relief.due
    worth[0] = 28 * MIB
    assert relief.due


def test_a_step_that_knows_what_it_is_worth_rests_a_quarter_of_a_second_at_most():
    clock = FakeClock()
    memory = Memory(100 * MIB)

    def slow():
        clock.advance(1)
        memory.used -= 50 * MIB

    relief = Relief([Step("slow", slow, worth=lambda: 0)], clock)
    assert relief.attempt(memory.read)

    assert not relief.due
    clock.advance(0.25)
    assert relief.due


def test_arenas_are_not_limited_once_many_threads_run(monkeypatch, caplog):
    monkeypatch.setattr(allocator.threading, "active_count", lambda: 9)

    with caplog.at_level(logging.INFO, "memguard"):
        assert not limit_arenas()

    assert "too late to limit glibc's arenas: 9 threads run" in caplog.text


def test_the_allocator_says_what_it_has_in_hand():
    before = allocator_usage()
    if before.name != "glibc":
        assert before.free_bytes is None
        pytest.skip(f"the allocator here is {before.name}")
    block = bytearray(40 * MIB)
    after = allocator_usage(count_arenas=True)

    handed_out = lambda usage: usage.in_use_bytes + usage.mapped_bytes  # noqa: E731
    assert handed_out(after) - handed_out(before) == pytest.approx(len(block), rel=0.05)
    assert after.arenas >= 1
    assert before.arenas is None


@pytest.mark.parametrize(
    ("platform", "preloaded", "host", "name"),
    [
        ("linux", "jemalloc", "x86_64-pc-linux-gnu", "jemalloc"),
        ("linux", None, "x86_64-pc-linux-musl", "musl"),
        ("linux", None, "x86_64-unknown-linux-gnu", "unknown"),
        ("darwin", None, "", "macos"),
        ("win32", None, "", "windows"),
        ("freebsd14", None, "", "unknown"),
    ],
)
@pytest.mark.usefixtures("no_c_library")
def test_another_allocator_is_named_and_left_alone(monkeypatch, platform, preloaded, host, name):
    monkeypatch.setattr(allocator, "_PLATFORM", platform)
    monkeypatch.setattr(allocator, "preloaded", lambda: preloaded)
    monkeypatch.setattr(allocator.sysconfig, "get_config_var", lambda _: host)
    monkeypatch.setattr("psutil.heap_info", lambda: SimpleNamespace(heap_used=7, mmap_used=2), raising=False)

    usage = allocator_usage()

    assert usage.name == name
    assert usage.in_use_bytes == (None if platform == "linux" else 7)
    assert usage.free_bytes is held_free_bytes() is None
    assert not allocator.trim()
    assert not limit_arenas()
    assert not Tops().give_back()
    assert not Tops().give_back_own()
    assert heap.heap_counts() is None


@pytest.fixture
def without_figures(monkeypatch, c_library):
    """A glibc older than 2.33, which gives no 64-bit figures, and refuses every option."""
    functions = ("malloc", "free", "open_memstream", "fclose", "malloc_info")
    library = SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda option, value: 0)
    for name in functions:
        setattr(library, name, SimpleNamespace())
    asks = heap.glibc.__wrapped__
    monkeypatch.setattr(heap, "PLATFORM", "linux")
    monkeypatch.setattr(heap, "preloaded", lambda: None)
    monkeypatch.setattr(heap, "c_library", lambda: library)
    c_library(asks())
    return library, asks


def test_an_old_glibc_is_named_without_figures(without_figures):
    assert allocator_usage() == AllocatorUsage("glibc")
    assert held_free_bytes() is None


def test_a_glibc_that_refuses_is_not_said_to_be_limited(without_figures, caplog):
    with caplog.at_level(logging.INFO, "memguard"):
        assert not limit_arenas()

    assert caplog.records == []


@pytest.mark.parametrize("stranger", ["another platform", "another libc", "another malloc"])
def test_only_glibcs_own_malloc_is_spoken_to(without_figures, monkeypatch, stranger):
    library, asks = without_figures
    if stranger == "another platform":
        monkeypatch.setattr(heap, "PLATFORM", "darwin")
    elif stranger == "another libc":
        del library.gnu_get_libc_version
    else:
        monkeypatch.setattr(heap, "preloaded", lambda: "jemalloc")

    assert asks() is None


@pytest.mark.parametrize("lacks", ["the function", "psutil"])
def test_an_allocator_that_psutil_cannot_ask_gives_no_figures(monkeypatch, c_library, lacks):
    c_library(None)
    monkeypatch.setattr(allocator, "_PLATFORM", "darwin")
    monkeypatch.delattr("psutil.heap_info", raising=False)
    if lacks == "psutil":
        monkeypatch.setitem(sys.modules, "psutil", None)

    assert allocator_usage() == AllocatorUsage("macos")


@pytest.mark.parametrize("error", [ImportError, OSError, TypeError])
def test_where_python_cannot_call_c_nothing_is_known_of_the_allocator(monkeypatch, error):
    """An interpreter beside the main one refuses ctypes before Python 3.13."""

    def refuse(name):
        raise error(name)

    monkeypatch.setattr("ctypes.CDLL", refuse)

    assert heap.c_library.__wrapped__() is None
    monkeypatch.setattr(heap, "c_library", lambda: None)
    assert heap.preloaded.__wrapped__() is None
    assert heap.glibc.__wrapped__() is None


def test_arenas_that_cannot_be_counted_for_want_of_memory_are_none():
    assert allocator._count_arenas(SimpleNamespace(open_memstream=lambda text, size: None)) == 0


TOPS = """
import sys, threading
from memguard.relief import Tops, allocator_usage
from memguard import memory_usage
MIB = 1024**2
go, filled = threading.Event(), threading.Barrier(13)
def work():
    for _ in range(3):
        block = bytearray(9 * MIB)
        del block
    filled.wait()
    filled.wait()
    if sys.argv[1] == "own":
        Tops().give_back_own()
    filled.wait()
    go.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads: thread.start()
filled.wait()
before = memory_usage().rss_bytes
filled.wait()
filled.wait()
if sys.argv[1] == "all":
    tried = [Tops().give_back() for _ in range(2)]
print(allocator_usage().name == "glibc", before - memory_usage().rss_bytes > 8 * MIB)
go.set()
for thread in threads: thread.join()
"""


@pytest.mark.skipif(allocator_usage().name != "glibc", reason="speaks of glibc's arenas")
@pytest.mark.parametrize("way", ["all", "own"])
def test_the_tops_of_arenas_come_back_while_their_threads_live(way):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    # So that freed blocks stay at the tops, whatever the sizes before did to the thresholds.
    env |= {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(64 * MIB)}

    out = subprocess.run(
        [sys.executable, "-c", TOPS, way], capture_output=True, text=True, timeout=60, env=env, check=False
    )

    assert out.stdout == "True True\n", out.stderr


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({}, {-1: 64 * MIB, -3: 32 * MIB}),
        ({"MALLOC_TRIM_THRESHOLD_": "4096"}, {-1: 4096, -3: 32 * MIB}),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}, {-1: 128 * 1024}),
        ({"GLIBC_TUNABLES": "a=1:glibc.malloc.trim_threshold=0x1000"}, {-1: 4096, -3: 32 * MIB}),
        ({"MALLOC_TRIM_THRESHOLD_": "much"}, {-1: 64 * MIB, -3: 32 * MIB}),
    ],
)
def test_the_users_thresholds_are_set_again(monkeypatch, environ, kept):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    said = []
    library = SimpleNamespace(mallopt=lambda *asked: said.append(asked))

    assert Tops()._lowered(library, lambda: said.append("done"))

    assert said[:2] == [(-1, MIB), "done"]
    assert dict(said[2:]) == kept


@pytest.mark.parametrize("at", ["lowering", "freeing"])
def test_thresholds_are_set_back_whatever_comes_in_between(at):
    said = []

    def mallopt(*asked):
        said.append(asked)
        if at == "lowering" and len(said) == 1:
            raise KeyboardInterrupt

    def free():
        raise KeyboardInterrupt

    own = Tops()
    with pytest.raises(KeyboardInterrupt):
        own._lowered(SimpleNamespace(mallopt=mallopt), free)

    assert said == [(-1, MIB), (-1, 64 * MIB), (-3, 32 * MIB)]
    assert own._lowered(SimpleNamespace(mallopt=lambda *_: 1), lambda: None)


def test_tops_are_given_back_by_one_at_a_time():
    own, answers = Tops(), []
    library = SimpleNamespace(mallopt=lambda *_: 1)

    assert own._lowered(library, lambda: answers.append(own._lowered(library, lambda: None)))
    assert answers == [False]


@pytest.mark.parametrize("left", [0, 2])
def test_where_no_thread_can_be_started_the_tops_of_fewer_come_back(monkeypatch, left):
    started = []

    def start(run, arguments):
        if len(started) == left:
            raise RuntimeError("can't start new thread")
        started.append(_thread.start_new_thread(run, arguments))

    freed = []
    library = SimpleNamespace(mallopt=lambda option, value: 1, malloc=lambda size: size, free=freed.append)
    monkeypatch.setattr(_tops, "start_new_thread", start)
    monkeypatch.setattr("memguard.relief._tops.held_free_bytes", lambda: 100 * MIB)
    monkeypatch.setattr("memguard.relief._tops._count_arenas", lambda library: 4)
    monkeypatch.setattr("memguard.relief._tops.glibc", lambda: library)

    assert Tops().give_back()
    assert len(freed) == left


@pytest.mark.skipif(sys.platform != "linux", reason="threads of glibc")
def test_tops_are_given_back_in_a_handler_that_interrupts_the_books_of_threading():
    """To start a threading.Thread there would be to wait for ever: its lock is ours, and the new thread wants it."""
    freed = []
    library = SimpleNamespace(malloc=lambda size: size, free=freed.append)

    with threading._active_limbo_lock:
        _tops._free_a_block_in_threads(library, 3)

    assert len(freed) == 3


def test_where_threads_only_make_more_arenas_it_is_not_tried_a_third_time(monkeypatch):
    counts = iter([4, 8, 8, 16, 16, 16])
    library = SimpleNamespace(mallopt=lambda option, value: 1, malloc=lambda size: 1, free=lambda block: None)
    monkeypatch.setattr("memguard.relief._tops.held_free_bytes", lambda: 100 * MIB)
    monkeypatch.setattr("memguard.relief._tops._count_arenas", lambda library: next(counts))
    monkeypatch.setattr("memguard.relief._tops.glibc", lambda: library)
    own = Tops()

    assert [own.give_back() for _ in range(3)] == [True, True, False]


def test_one_arena_is_left_to_the_trim(monkeypatch):
    monkeypatch.setattr("memguard.relief._tops.held_free_bytes", lambda: 100 * MIB)
    monkeypatch.setattr("memguard.relief._tops._count_arenas", lambda library: 1)
    monkeypatch.setattr("memguard.relief._tops.glibc", SimpleNamespace)

    assert not Tops().give_back()


@pytest.mark.parametrize(
    ("free", "used", "anon", "kept"),
    [
        pytest.param(30, 60, 100, 30, id="all that is held free is resident"),
        pytest.param(80, 60, 100, 40, id="a part was returned already"),
        pytest.param(30, 120, 100, 0, id="more was handed out than is touched"),
    ],
)
def test_what_is_kept_is_held_free_and_resident(free, used, anon, kept):
    assert HeapCounts(free, used).kept_bytes(anon) == kept


def test_tidying_runs_the_cheap_steps_alone_and_not_soon_again():
    clock, ran = FakeClock(), []
    steps = [
        Step("dear", lambda: ran.append("dear")),
        Step("cheap", lambda: ran.append("cheap"), worth=lambda: 99 * MIB),
    ]
    relief = Relief(steps, clock)

    assert relief.tidy_due
    assert relief.attempt(lambda: 100, tidy=True)
    assert ran == ["cheap"]
    clock.advance(9)
    assert not relief.tidy_due
    clock.advance(1)
    assert relief.tidy_due
