from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import json
import logging
import os
import pickle
import subprocess
import sys
import threading

import pytest

import memguard
from memguard import (
    UNGUARDED,
    ChunksRefusedError,
    Level,
    MemoryCircuitBreaker,
    MemoryCircuitBreakerError,
    MemoryUsage,
    ReservationTooLargeError,
)
from memguard.breaker import _default as default
from memguard.settings import settings
from memguard.testing import FakeClock, ScriptedSampler
from memguard.values import gate_of

MIB = 1024**2
NORMAL, WARNING, CRITICAL = Level


def scripted(*readings, limit=1000 * MIB, **options):
    clock = options.pop("clock", FakeClock())
    sampler = ScriptedSampler(readings, limit_bytes=limit, clock=clock)
    options.setdefault("relief", False)
    return MemoryCircuitBreaker(sampler=sampler, clock=clock, **options), sampler, clock


@pytest.mark.parametrize(
    ("fractions", "level", "state"),
    [
        pytest.param([0.5], NORMAL, "closed", id="is normal"),
        pytest.param([0.72], WARNING, "closed", id="warns above warn_at"),
        pytest.param([0.85], CRITICAL, "open", id="refuses above open_at"),
        pytest.param([0.85, 0.77], CRITICAL, "open", id="keeps refusing until below close_at"),
        pytest.param([0.85, 0.69], NORMAL, "half-open", id="is tried out again below close_at"),
    ],
)
def test_level_and_state_follow_memory(fractions, level, state):
    breaker, _, _ = scripted(*fractions)

    for _ in fractions:
        breaker.tick()

    assert (breaker.level, breaker.state) == (level, state)


def test_check_raises_only_while_open_and_says_the_numbers():
    breaker, sampler, clock = scripted(0.5)
    assert breaker.check().used_bytes == 500 * MIB
    sampler.then(0.85)
    breaker.tick()

    with pytest.raises(MemoryCircuitBreakerError) as caught:
        breaker.check()

    error = caught.value
    assert error.usage.used_bytes == error.memory_usage.used_bytes == 850 * MIB
    assert error.retry_after == breaker.retry_after == 1.0
    assert str(error) == ("refused: 850 MiB of 1000 MiB (85 %, scripted) in use; the line is 800 MiB; try again in 1 s")
    sampler.then(0.5)
    clock.advance(1)
    assert breaker.check().used_bytes == 500 * MIB
    assert breaker.state == "half-open"


def test_a_fresh_reading_is_not_taken_again():
    breaker, sampler, clock = scripted(0.5)
    for _ in range(100):
        breaker.check()
    assert sampler.calls == 1

    clock.advance(1)
    breaker.check()
    assert sampler.calls == 2


def test_relief_comes_before_a_refusal(monkeypatch):
    memory = {"used": 0.9}
    monkeypatch.setattr("memguard.relief._relief.gc.collect", lambda: memory.update(used=0.5))
    usage = lambda: MemoryUsage(1, 1, round(memory["used"] * 1000), 1000, "test", 0.0)  # noqa: E731
    breaker = MemoryCircuitBreaker(sampler=usage)
    changes = []
    breaker.on_change.connect(changes.append)

    assert breaker.check().used_bytes == 500
    assert breaker.statistics().relief_runs == 1
    assert changes == []


def test_relief_is_tried_again_while_the_circuit_is_open(monkeypatch):
    memory = []
    monkeypatch.setattr("memguard.relief._relief.gc.collect", lambda: memory[0].then(0.5))
    breaker, sampler, _ = scripted(0.9, relief=True)
    memory.append(sampler)
    breaker.tick()
    assert breaker.state == "open"

    assert breaker.check().used_bytes == 500 * MIB
    assert breaker.state == "half-open"


def test_while_one_relief_runs_no_other_is_started(monkeypatch):
    inside, go = threading.Event(), threading.Event()
    runs = []

    def collect():
        runs.append(1)
        inside.set()
        assert go.wait(30)

    monkeypatch.setattr("memguard.relief._relief.gc.collect", collect)
    breaker, _, _ = scripted(0.9, relief=True)

    async def main():
        for _ in range(3):
            with pytest.raises(MemoryCircuitBreakerError):
                breaker.check()
            assert inside.wait(30)

    asyncio.run(main())
    reliever = breaker._relieving._thread
    go.set()
    reliever.join(30)

    assert runs == [1]


def test_on_an_event_loop_relief_runs_in_another_thread(monkeypatch):
    ran = threading.Event()
    where = []

    def collect():
        where.append(threading.current_thread())
        ran.set()

    monkeypatch.setattr("memguard.relief._relief.gc.collect", collect)
    breaker, _, _ = scripted(0.9, relief=True)

    async def main():
        with pytest.raises(MemoryCircuitBreakerError):
            breaker.check()

    asyncio.run(main())

    assert ran.wait(30)
    assert where[0] is not threading.main_thread()


def test_allows_neither_raises_nor_waits():
    breaker, sampler, _ = scripted(0.5)
    assert breaker.allows()
    assert breaker.allows("300 MiB")
    assert not breaker.allows("301 MiB")
    sampler.then(0.9)
    breaker.tick()
    assert not breaker.allows()


def test_execute_checks_before_and_reads_after():
    breaker, sampler, _ = scripted(0.5, 0.9)
    assert breaker.execute(divmod, 7, 2) == (3, 1)
    assert breaker.state == "open"

    called = []
    with pytest.raises(MemoryCircuitBreakerError):
        breaker.execute(called.append, 1)
    assert called == []


def test_execute_checks_an_async_function_when_it_is_awaited():
    breaker, sampler, _ = scripted(0.5)

    async def work(x):
        return x * 2

    async def main():
        first = breaker.execute(work, 21)
        second = breaker.execute(work, 1)
        assert await first == 42
        sampler.then(0.9)
        breaker.tick()
        with pytest.raises(MemoryCircuitBreakerError):
            await second

    asyncio.run(main())


def test_an_error_of_the_function_passes_and_gives_back_its_place():
    breaker, sampler, _ = scripted(0.9)
    breaker.tick()
    sampler.then(0.5)
    breaker.tick()
    assert breaker.state == "half-open"

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            breaker.execute(lambda: 1 / 0)


def half_open():
    breaker, sampler, clock = scripted(0.9)
    breaker.tick()
    sampler.then(0.5)
    clock.advance(2)
    breaker.tick()
    assert breaker.state == "half-open"
    return breaker, clock


def crowd(breaker, count=50):
    """Have *count* callers try at once; return those that were admitted, still held."""
    held = []
    for _ in range(count):
        with contextlib.suppress(MemoryCircuitBreakerError):
            held.append(breaker.acquire(MIB))
    return held


def test_half_open_admits_one_of_50_threads_at_one_moment():
    breaker, _ = half_open()
    inside, go, refused = [], threading.Event(), []

    def work():
        try:
            with breaker.reserve(MIB):
                inside.append(1)
                assert go.wait(30)
        except MemoryCircuitBreakerError:
            refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    while len(inside) + len(refused) < 50:
        pass
    go.set()
    for thread in threads:
        thread.join(30)

    assert (len(inside), len(refused)) == (1, 49)


def test_the_ramp_goes_up_with_time_however_many_ask():
    breaker, clock = half_open()
    held = crowd(breaker)
    counts = [len(held)]

    for _ in range(2):
        clock.advance(1)
        held += crowd(breaker)
        counts.append(len(held))

    assert (counts, breaker.state) == ([1, 2, 4], "half-open")
    clock.advance(1)
    assert len(crowd(breaker)) == 50
    assert breaker.state == "closed"


def test_the_ramp_goes_up_with_each_piece_of_work_that_ends():
    breaker, _ = half_open()
    counts = []

    for _ in range(3):
        held = crowd(breaker)
        counts.append(len(held))
        for each in held:
            each.release()

    assert counts == [1, 2, 4]
    assert len(crowd(breaker)) == 50


def test_readings_alone_do_not_open_the_ramp():
    breaker, _ = half_open()
    for _ in range(20):
        breaker.tick()
    assert len(crowd(breaker)) == 1


def test_check_never_spends_a_permit_of_the_ramp():
    breaker, sampler, _ = scripted(0.9)
    breaker.tick()
    sampler.then(0.5)
    breaker.tick()

    with breaker.reserve(MIB):
        for _ in range(10):
            breaker.check()


def test_observe_mode_refuses_nothing_and_counts_what_it_would_have():
    breaker, _, _ = scripted(0.9, mode="observe")
    breaker.check()
    with breaker.reserve(10 * MIB):
        pass

    assert breaker.state == "open"
    assert breaker.statistics().refused == 1
    assert breaker.allows(MIB)


def test_changes_are_told_in_order_and_a_failing_listener_harms_nobody(caplog):
    breaker, sampler, _ = scripted(0.72)
    seen = []
    breaker.on_change.connect(lambda change: 1 / 0)
    disconnect = breaker.on_change.connect(seen.append)
    breaker.tick()
    sampler.then(0.9)
    breaker.tick()
    breaker.tick()

    assert [(c.before, c.after, c.level) for c in seen] == [("closed", "closed", 1), ("closed", "open", 2)]
    assert "listener" in caplog.text
    disconnect()
    disconnect()
    sampler.then(0.1)
    breaker.tick()
    assert len(seen) == 2


def test_a_change_that_a_listener_brings_about_is_told_after_the_one_it_heard_of():
    breaker, _, _ = scripted(0.72, 0.9)
    seen = []

    def react(change):
        if change.level is WARNING:
            with pytest.raises(MemoryCircuitBreakerError):
                breaker.reserve("200 MiB").__enter__()  # reads again before it refuses
            assert breaker.state == "open"

    breaker.on_change.connect(react)
    breaker.on_change.connect(lambda change: seen.append(change.level))

    breaker.tick()

    assert seen == [WARNING, CRITICAL]


def test_what_cannot_be_called_is_no_listener():
    breaker, _, _ = scripted(0.5)
    with pytest.raises(TypeError, match="5 cannot be called"):
        breaker.on_change.connect(5)


def test_a_listener_may_ask_the_breaker(caplog):
    breaker, _, _ = scripted(0.9)
    answers = []
    breaker.on_change.connect(lambda change: answers.append((breaker.state, breaker.allows(), breaker.tick())))

    breaker.tick()

    assert answers[0][:2] == ("open", False)


def test_opening_is_logged_once_with_numbers(caplog):
    breaker, _, _ = scripted(0.9, name="uploads")
    with caplog.at_level(logging.INFO, "memguard"):
        for _ in range(5):
            breaker.tick()

    assert [record.getMessage() for record in caplog.records] == [
        "uploads: open (was closed), level critical: 900 MiB of 1000 MiB in use (90 %, scripted)"
    ]


def test_a_line_above_95_percent_warns_once(caplog):
    breaker, _, _ = scripted(0.5, open_at="2 GiB")
    breaker.tick()
    breaker.tick()

    assert caplog.text.count("acts at 950 MiB") == 1


def test_by_level_picks_what_goes_with_the_level():
    breaker, sampler, _ = scripted(0.5)
    assert breaker.by_level(50, 25, 10) == 50
    sampler.then(0.9)
    breaker.tick()
    assert breaker.by_level(50, 25, 10) == 10


def test_health_is_json_and_describe_is_for_people():
    breaker, _, _ = scripted(0.5)

    health = json.loads(json.dumps(breaker.health()))
    assert (health["state"], health["percent"], health["reserved_bytes"]) == ("closed", 50.0, 0)
    assert "500 MiB of 1000 MiB in use" in breaker.describe()
    assert "closed" in repr(breaker)


def test_an_explicit_limit_tightens_a_sampler():
    breaker, _, _ = scripted(0.5, limit=1000 * MIB)
    tight, _, _ = scripted(0.5, limit=1000 * MIB)
    tight = MemoryCircuitBreaker(sampler=ScriptedSampler([0.5], limit_bytes=1000 * MIB), limit="600 MiB", relief=False)

    assert breaker.usage().limit_bytes == 1000 * MIB
    assert tight.usage().limit_bytes == 600 * MIB
    assert not tight.allows()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"open_at": 80}, ValueError),
        ({"open_at": True}, TypeError),
        ({"open_at": "512m"}, ValueError),
        ({"close_at": 0.9}, ValueError),
        ({"limit": 0}, ValueError),
        ({"limit": -1}, ValueError),
        ({"check_interval": 0}, ValueError),
        ({"check_interval": float("nan")}, ValueError),
        ({"check_interval": "1"}, TypeError),
        ({"check_interval": True}, TypeError),
        ({"mode": "on"}, ValueError),
        ({"relief": 1}, TypeError),
        ({"sampler": 5}, TypeError),
        ({"clock": 5}, TypeError),
    ],
)
def test_nonsense_is_refused_at_the_door(options, error):
    with pytest.raises(error):
        MemoryCircuitBreaker(**options)


def test_errors_survive_the_trip_from_a_worker():
    usage = MemoryUsage(1, 1, 90, 100, "test", 0.0)
    error = MemoryCircuitBreakerError(usage, 5 * MIB, 7 * MIB, 2.0, 80)
    chunks = ChunksRefusedError(error, {"items_done": 3})

    for original in (error, chunks):
        back = pickle.loads(pickle.dumps(original))
        assert str(back) == str(original)
        assert copy.copy(original).requested_bytes == 5 * MIB
    assert pickle.loads(pickle.dumps(chunks)).report == {"items_done": 3}


def test_what_can_never_fit_is_advised_otherwise():
    usage = MemoryUsage(1, 1, 10, 100, "test", 0.0)

    assert "can never fit" in str(ReservationTooLargeError(usage, 90, 0, None, 80))


def test_the_default_breaker_is_one_object_that_is_changed_in_place():
    code = """
import memguard
breaker = memguard.default_breaker()
assert breaker is memguard.default_breaker()
assert memguard.configure(limit="64 GiB", open_at="60%") is breaker
assert "opens at 60 %" in breaker.describe(), breaker.describe()
memguard.configure(mode="observe")
assert breaker.mode == "observe" and "opens at 60 %" in breaker.describe()
try:
    memguard.configure(open_at=80)
except ValueError:
    pass
else:
    raise SystemExit("not refused")
assert "opens at 60 %" in breaker.describe()
@memguard.guard
def double(x): return x * 2
assert double(2) == 4
"""
    env = os.environ | {"MEMGUARD_OPEN_AT": "70%"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, timeout=60, check=True)


@pytest.fixture
def no_default_breaker(monkeypatch):
    """As in a process that has not asked for it; arenas are counted, not limited."""
    asked = []
    monkeypatch.setattr(default, "_made", {})
    monkeypatch.setattr(default._configured, "asked", {})
    monkeypatch.setattr(default, "limit_arenas", lambda: asked.append(1))
    return asked


@pytest.mark.parametrize(("arenas", "asked"), [("", [1]), ("keep", [])])
def test_the_default_breaker_limits_arenas_unless_told_to_keep_them(no_default_breaker, monkeypatch, arenas, asked):
    monkeypatch.setenv("MEMGUARD_ARENAS", arenas)
    settings.cache_clear()

    for _ in range(2):
        memguard.default_breaker()

    assert no_default_breaker == asked


def test_the_guard_of_the_module_asks_the_default_breaker_of_the_moment_of_the_call(no_default_breaker):
    @memguard.guard(cost="1 MiB")
    def held():
        return memguard.default_breaker().statistics().reserved_bytes

    assert default._made == {}
    assert held() == MIB


def test_threads_that_ask_at_once_get_the_same_default_breaker(no_default_breaker, monkeypatch):
    got = []

    def while_it_is_made():
        if not got:
            got.append(None)
            thread = threading.Thread(target=lambda: got.append(memguard.default_breaker()))
            thread.start()
            thread.join(30)

    monkeypatch.setattr(default, "limit_arenas", while_it_is_made)
    breaker = memguard.default_breaker()

    assert got == [None, breaker]


def test_relief_can_be_switched_off_and_on(no_default_breaker, monkeypatch):
    collected = []
    monkeypatch.setattr("memguard.relief._relief.gc.collect", lambda: collected.append(1))
    breaker = memguard.configure(relief=False)
    monkeypatch.setattr(breaker._readings, "_sample", ScriptedSampler([0.9]))

    with pytest.raises(MemoryCircuitBreakerError):
        breaker.check()
    assert collected == []

    assert memguard.configure(relief=True) is breaker
    with pytest.raises(MemoryCircuitBreakerError):
        breaker.check()
    assert collected  # more than once if the reading is stale before the refusal


def test_the_signature_of_configure_shows_that_nothing_has_to_be_given():
    assert str(inspect.signature(memguard.configure)).count("= ...") == 7


def test_a_wrong_environment_is_named_by_the_default_breaker():
    out = subprocess.run(
        [sys.executable, "-c", "import memguard; memguard.default_breaker()"],
        env=os.environ | {"MEMGUARD_MODE": "on"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "MEMGUARD_MODE='on'" in out.stderr


def test_no_breaker_means_the_default_one_looked_up_now():
    assert gate_of(None) is memguard.default_breaker()
    assert gate_of(UNGUARDED) is UNGUARDED


def test_unguarded_admits_everything():
    UNGUARDED.check()
    assert UNGUARDED.allows(10**18)
    with UNGUARDED.reserve("1 PiB", timeout=None) as hold:
        hold.resize(5)
        hold.release()
    assert hold.nbytes == 5


def test_unguarded_admits_on_an_event_loop_too():
    async def main():
        async with UNGUARDED.reserve("1 PiB", timeout=None) as hold:
            return hold.nbytes

    assert asyncio.run(main()) == 1024**5
    assert repr(UNGUARDED) == "memguard.UNGUARDED"


def test_unguarded_refuses_what_is_no_size_as_a_breaker_does():
    for ask in (UNGUARDED.allows, UNGUARDED.reserve):
        with pytest.raises(ValueError, match="512m"):
            ask("512m")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    breaker, _, _ = scripted(0.5)
    child_code = 1
    held_now, go = threading.Event(), threading.Event()
    with breaker.reserve(250 * MIB) as held:
        hold = threading.Thread(
            target=lambda: (breaker._desk.lock.acquire(), held_now.set(), go.wait(30), breaker._desk.lock.release())
        )
        hold.start()
        assert held_now.wait(30)
        child = os.fork()
        if child == 0:
            child_code = 0 if breaker.allows(300 * MIB) else 2
            held.release()
            child_code = child_code or (0 if breaker.statistics().reserved_bytes == 0 else 3)
            os._exit(child_code)
        go.set()
        hold.join(30)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert breaker.allows(300 * MIB)  # of which it has 250 already
        assert not breaker.allows(301 * MIB)


def test_a_breaker_that_is_stuck_says_so_and_tries_again(caplog):
    breaker, _, clock = scripted(0.85)
    changes = []
    breaker.on_change.connect(changes.append)
    breaker.tick()
    assert not breaker.allows()

    clock.advance(31)
    with caplog.at_level(logging.WARNING, "memguard"):
        breaker.tick()

    assert breaker.state == "half-open"
    assert breaker.allows()
    assert changes[-1].stuck
    assert breaker.statistics().stuck == 1
    assert breaker.health()["stuck"]
    assert "stuck with 850 MiB in use" in caplog.text
    with breaker.reserve("40 MiB"):
        pass
    with pytest.raises(MemoryCircuitBreakerError):
        breaker.reserve("60 MiB").__enter__()


def test_what_a_burst_left_with_the_allocator_is_given_back_once_nobody_holds_bytes(monkeypatch):
    ran = threading.Event()
    monkeypatch.setattr("memguard.relief._relief.trim", ran.set)
    monkeypatch.setattr("memguard.relief._relief._free_bytes", lambda: 100 * MIB)
    kept = MemoryUsage(200 * MIB, 200 * MIB, 200 * MIB, 1000 * MIB, "scripted", 0.0, malloc_free_bytes=100 * MIB)
    breaker, _, _ = scripted(kept, relief=True)

    with breaker.reserve("1 MiB"):
        pass

    assert ran.wait(30)
    assert breaker.state == "closed"


def test_off_lets_everything_pass_and_reads_counts_logs_and_relieves_nothing(caplog):
    breaker, sampler, _ = scripted(0.9, mode="off", relief=True)

    with caplog.at_level(logging.DEBUG, "memguard"):
        breaker.check()
        with breaker.reserve(5000 * MIB) as held:
            assert breaker.level is NORMAL
            assert breaker.allows(9000 * MIB)
            held.resize(6000 * MIB)
            held.resize(MIB)
        breaker.execute(int)

    counts = breaker.statistics()
    assert (counts.admitted, counts.refused, counts.readings, counts.relief_runs) == (0, 0, 0, 0)
    assert (counts.reserved_bytes, sampler.calls, caplog.records) == (0, 0, [])
