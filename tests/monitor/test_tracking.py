from __future__ import annotations

import asyncio
import inspect
import logging
import mmap
import sys
import threading

import pytest

from memguard import LRUCache, MemoryMonitor, OperationStatistics, memory_usage
from memguard.monitor._inside import Inside, Thrifty
from memguard.testing import FakeClock

MIB = 1024**2
LONG = 30.0


def touch(nbytes):
    """Memory that is new and not malloc's, so that an arena's free pages cannot stand in for it."""
    block = (
        mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if sys.platform != "win32"
        else bytearray(nbytes)
    )
    block[::4096] = b"x" * len(range(0, nbytes, 4096))
    return block


@pytest.fixture
def monitor():
    return MemoryMonitor()


def test_track_tells_before_after_difference_peak_and_duration(monitor):
    with monitor.track("import", rows=10) as tracked:
        passing = touch(40 * MIB)
        kept = touch(10 * MIB)
        passing.close()

    assert abs(tracked.peak_bytes - 50 * MIB) < 2 * MIB
    assert abs(tracked.kept_bytes - 10 * MIB) < 2 * MIB
    assert tracked.after_bytes - tracked.before_bytes == tracked.kept_bytes
    assert tracked.seconds > 0
    kept.close()


def test_operations_count_total_and_maximum(monitor):
    for size in (10, 30, 20):
        with monitor.track("import"):
            touch(size * MIB).close()
    with pytest.raises(KeyError), monitor.track("import"):
        raise KeyError

    statistics = monitor.operations["import"]

    assert (statistics.count, statistics.failed) == (4, 1)
    assert abs(statistics.peak_bytes_max - 30 * MIB) < 2 * MIB
    assert abs(statistics.kept_bytes_total) < 4 * MIB
    assert 0 < statistics.max_seconds <= statistics.total_seconds
    assert statistics.mean_seconds == statistics.total_seconds / 4


def test_nested_and_concurrent_operations_each_get_their_own_peak(monitor):
    entered, leave = threading.Event(), threading.Event()

    def around():
        with monitor.track("around"):
            entered.set()
            leave.wait(LONG)

    thread = threading.Thread(target=around)
    thread.start()
    assert entered.wait(LONG)
    with monitor.track("outer"):
        touch(60 * MIB).close()
        with monitor.track("inner"):
            touch(20 * MIB).close()
    leave.set()
    thread.join(LONG)

    peaks = {name: each.peak_bytes_max for name, each in monitor.operations.items()}
    assert abs(peaks["inner"] - 20 * MIB) < 2 * MIB
    assert abs(peaks["outer"] - 60 * MIB) < 2 * MIB
    assert abs(peaks["around"] - 60 * MIB) < 4 * MIB


def test_as_a_decorator_it_tracks_each_call_and_leaves_the_function_what_it_is(monitor):
    @monitor.track("double")
    def double(x: int) -> int:
        """Twice."""
        return x * 2

    assert [double(1), double(2)] == [2, 4]
    assert monitor.operations["double"].count == 2
    assert (double.__name__, double.__doc__, list(inspect.signature(double).parameters)) == ("double", "Twice.", ["x"])


def test_a_coroutine_is_tracked_until_it_ends_not_until_it_is_made(monitor):
    @monitor.track("wait")
    async def wait():
        touch(20 * MIB).close()
        await asyncio.sleep(0)

    async def main():
        made = wait()
        assert "wait" not in monitor.operations
        await made

    asyncio.run(main())

    assert monitor.operations["wait"].count == 1
    assert monitor.operations["wait"].peak_bytes_max > 18 * MIB


def test_a_generator_is_tracked_from_its_first_step_until_it_is_done(monitor):
    @monitor.track("rows")
    def rows():
        yield 1
        yield 2

    made = rows()
    next(made)
    assert "rows" not in monitor.operations
    assert list(made) == [2]
    closed = rows()
    next(closed)
    closed.close()

    assert (monitor.operations["rows"].count, monitor.operations["rows"].failed) == (2, 0)


def test_an_async_generator_is_tracked_until_it_is_done(monitor):
    @monitor.track("pages")
    async def pages():
        yield 1
        yield 2

    async def main():
        return [page async for page in pages()]

    assert asyncio.run(main()) == [1, 2]
    assert monitor.operations["pages"].count == 1


def test_async_with_tracks_as_well(monitor):
    async def main():
        async with monitor.track("job"):
            await asyncio.sleep(0)

    asyncio.run(main())

    assert monitor.operations["job"].count == 1


def test_a_run_is_tracked_once(monitor):
    run = monitor.track("job")
    with run:
        pass

    with pytest.raises(RuntimeError, match="'job' was tracked already"), run:
        pass
    with pytest.raises(RuntimeError, match="never entered"):
        monitor.track("job").__exit__(None, None, None)


@pytest.mark.parametrize(("wrong", "words"), [(len, "@monitor.track"), (5, "got 5")])
def test_track_wants_a_name(monitor, wrong, words):
    with pytest.raises(TypeError, match=words):
        monitor.track(wrong)


def test_track_wraps_functions_only(monitor):
    with pytest.raises(TypeError, match="got 5"):
        monitor.track("job")(5)


def test_names_without_end_are_counted_together(monitor, caplog):
    for number in range(1010):
        monitor._operations.add(f"order {number}", _run(), failed=False)

    assert len(monitor.operations) == 1001
    assert monitor.operations["(others)"].count == 10
    assert caplog.text.count("more than 1000 operations") == 1


def _run():
    from memguard import measure_peak

    return measure_peak()


def test_a_run_is_logged_for_whoever_debugs(monitor, caplog):
    with caplog.at_level(logging.DEBUG, "memguard"), monitor.track("import", rows=10):
        pass

    assert "import rows=10: " in caplog.text
    assert "peak +" in caplog.text
    assert getattr(caplog.records[-1], "memguard.rows") == 10


def test_log_memory_usage_tells_operation_before_after_and_difference(monitor, caplog):
    from dataclasses import replace

    usage = memory_usage()
    before = replace(usage, rss_bytes=100 * MIB, at=1.0)
    after = replace(usage, rss_bytes=140 * MIB, at=3.5)

    with caplog.at_level(logging.INFO, "memguard"):
        monitor.log_memory_usage("import", before, after)

    assert "import: 100 MiB -> 140 MiB (+40 MiB)" in caplog.text
    assert "2.500 s" in caplog.text


def test_the_statistics_of_nothing_are_zero():
    assert OperationStatistics().mean_seconds == 0.0


def test_a_dear_reading_takes_at_most_a_thousandth_of_the_time():
    clock, stopwatch = FakeClock(), FakeClock()
    calls = []

    def read():
        calls.append(clock.now)
        stopwatch.advance(0.036)
        return 7

    thrifty = Thrifty(read, clock, stopwatch)
    seen = []
    for _ in range(100):
        seen.append(thrifty())
        clock.advance(1)

    assert len(calls) == 3
    assert seen[0] == 7
    assert seen[1] is None


def test_what_caches_hold_is_taken_from_the_last_time_while_it_is_not_due():
    inside = Inside(FakeClock())
    cache = LRUCache(max_bytes=100 * MIB, sizeof=lambda value: MIB)
    first = inside.cached_bytes()
    cache["a"] = 1

    assert inside.cached_bytes() == first


def test_what_is_not_due_is_unknown_not_nothing():
    inside = Inside(FakeClock())
    usage = memory_usage()

    inside.fill(usage)

    assert inside.fill(usage).python_blocks is None
