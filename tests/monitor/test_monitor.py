from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import threading
import time
import weakref

import pytest

from memguard import (
    UNGUARDED,
    Level,
    MemoryCircuitBreaker,
    MemoryMonitor,
    detect_leak,
    memory_usage,
    read_samples,
    write_samples,
)
from memguard.settings import settings
from memguard.testing import FakeClock, ScriptedSampler
from memguard.values import MemoryUsage

MIB = 1024**2
GIB = 1024**3
LONG = 30.0


def watched(*readings, seconds=60.0, **options):
    """A monitor that follows a script; each call of the function returned takes a sample, *seconds* after the last."""
    clock = FakeClock()
    sampler = ScriptedSampler(readings, clock=clock)
    monitor = MemoryMonitor(sampler=sampler, clock=clock, **options)

    def tick(count=1):
        for _ in range(count):
            monitor.tick()
            clock.advance(seconds)
        return monitor

    return monitor, tick


def resident(rss_bytes, used_bytes=100 * MIB, limit_bytes=GIB):
    return MemoryUsage(rss_bytes, rss_bytes, used_bytes, limit_bytes, "scripted", 0.0)


# ----- samples


def test_it_samples_every_60_seconds_keeps_60_and_alerts_unless_told_otherwise():
    monitor = MemoryMonitor()

    config = monitor._config
    assert (config.sample_interval, config.max_samples, config.growth_threshold) == (60.0, 60, 1.5)
    assert (config.alerts, config.max_growth_bytes, config.log_interval) == (True, 10_000_000, None)


def test_one_tick_by_hand_takes_one_sample():
    monitor, _ = watched(0.5)

    usage = monitor.tick()

    assert monitor.samples == (usage,)
    assert usage.fraction == 0.5


def test_the_oldest_sample_makes_room_for_the_newest():
    monitor, tick = watched(*(n * MIB for n in range(1, 6)), max_samples=3)

    tick(5)

    assert [sample.used_bytes // MIB for sample in monitor.samples] == [3, 4, 5]


def test_each_sample_is_announced():
    monitor, tick = watched(0.1, 0.2)
    heard = []
    monitor.on_sample.connect(heard.append)

    tick(2)

    assert heard == list(monitor.samples)


def test_a_sample_of_this_machine_knows_what_only_the_process_can_say():
    monitor = MemoryMonitor(breaker=UNGUARDED)

    usage = monitor.tick()

    assert usage.python_blocks > 1000
    if sys.platform == "linux":
        assert usage.malloc_in_use_bytes > 0


def test_the_monitor_shares_the_breaker_s_reading():
    sampler = ScriptedSampler([0.5])
    breaker = MemoryCircuitBreaker(sampler=sampler, clock=FakeClock())

    usage = MemoryMonitor(breaker=breaker).tick()

    assert breaker.usage().used_bytes == usage.used_bytes
    assert sampler.calls == 1


def test_samples_never_go_back_in_time():
    clock = FakeClock()
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5]), clock=clock)

    monitor.tick()
    clock.now -= 5
    monitor.tick()

    assert [sample.at for sample in monitor.samples] == [1000.0, 1000.0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sample_interval": 0}, ValueError, "sample_interval .* 0"),
        ({"sample_interval": True}, TypeError, "sample_interval .* True"),
        ({"log_interval": -1}, ValueError, "log_interval .* -1"),
        ({"max_samples": 1}, ValueError, "max_samples .* 1"),
        ({"max_samples": 1.5}, TypeError, "max_samples .* 1.5"),
        ({"growth_threshold": 1}, ValueError, "growth_threshold .* 1"),
        ({"growth_threshold": "much"}, TypeError, "growth_threshold .* 'much'"),
        ({"alerts": 1}, TypeError, "alerts .* 1"),
        ({"warn_at": "90%", "critical_at": "80%"}, ValueError, "warn_at='90%', critical_at='80%'"),
        ({"critical_at": 80}, ValueError, "80%"),
        ({"max_growth_per_minute": "10m"}, ValueError, "two meanings"),
        ({"sampler": 5}, TypeError, "sampler .* 5"),
        ({"clock": 5}, TypeError, "clock .* 5"),
    ],
)
def test_nonsense_is_refused_at_the_door(options, error, words):
    with pytest.raises(error, match=words):
        MemoryMonitor(**options)


# ----- lines and alerts


def test_levels_are_the_breaker_s_unless_told_otherwise():
    breaker = MemoryCircuitBreaker(sampler=ScriptedSampler([0.5, 0.72, 0.85]), clock=FakeClock())
    monitor = MemoryMonitor(breaker=breaker)

    levels = []
    for _ in range(3):
        monitor.tick()
        levels.append(monitor.health()["level"])

    assert levels == ["normal", "warning", "critical"]
    assert monitor.is_critical()


def test_a_server_warns_at_1_gb_and_is_critical_at_2_gb_of_its_own():
    busy_machine = 50 * GIB
    sizes = [resident(size, busy_machine, 64 * GIB) for size in (9 * 10**8, 11 * 10**8, 21 * 10**8)]
    monitor, tick = watched(*sizes, warn_at="1 GB", critical_at="2 GB", max_growth_per_minute="64 GB")
    alerts = []
    monitor.on_alert.connect(alerts.append)

    tick(3)

    assert [(alert.level, alert.active) for alert in alerts] == [(Level.WARNING, True), (Level.CRITICAL, True)]
    assert "warns at 953.7 MiB, critical at 1.9 GiB" in alerts[0].message


def test_relative_lines_are_held_against_the_limit():
    monitor, tick = watched(0.55, 0.65, warn_at="50%", critical_at="60%", seconds=0.5)

    assert not tick().is_critical()
    assert tick().is_critical()


def test_a_level_is_left_only_well_below_its_line():
    monitor, tick = watched(0.81, 0.77, 0.74, 0.70, 0.60, max_growth_per_minute="2 GB")
    levels = []
    monitor.on_alert.connect(lambda alert: levels.append(alert.level))

    tick(5)

    assert levels == [Level.CRITICAL, Level.WARNING, Level.NORMAL]


def test_alerts_come_on_change_only():
    monitor, tick = watched(0.9)
    alerts = []
    monitor.on_alert.connect(alerts.append)

    tick(5)

    assert len(alerts) == 1


def test_growth_of_more_than_10_mb_a_minute_alerts_once_and_says_when_it_is_over():
    sizes = [100 * MIB, 100 * MIB, 120 * MIB, 140 * MIB, 141 * MIB]
    monitor, tick = watched(*sizes, warn_at="90%", critical_at="95%")
    alerts = []
    monitor.on_alert.connect(alerts.append)

    tick(5)

    assert [(alert.kind, alert.active) for alert in alerts] == [("growth", True), ("growth", False)]
    assert alerts[0].growth_bytes_per_minute == 20 * MIB
    assert "grows by more than 9.5 MiB a minute" in alerts[0].message


def test_growth_is_judged_over_a_minute_however_often_it_is_looked():
    """A process that takes 8 MiB at once does not grow 480 MiB a minute."""
    monitor, tick = watched(100 * MIB, *[108 * MIB] * 59, seconds=1.0)
    alerts = []
    monitor.on_alert.connect(alerts.append)

    tick(60)

    assert alerts == []


def test_alerts_are_logged_with_numbers(caplog):
    monitor, tick = watched(0.9)

    with caplog.at_level(logging.INFO, "memguard"):
        tick()

    assert "memory is critical (was normal): 921.6 MiB resident, 921.6 MiB of 1 GiB in use (90 %" in caplog.text
    assert caplog.records[-1].levelname == "ERROR"


def test_without_alerts_nothing_is_logged_or_announced(caplog):
    monitor, tick = watched(0.9, alerts=False)
    alerts = []
    monitor.on_alert.connect(alerts.append)

    with caplog.at_level(logging.INFO, "memguard"):
        tick()

    assert alerts == []
    assert caplog.records == []
    assert monitor.is_critical()


def test_a_listener_that_fails_stops_neither_the_monitor_nor_the_other_listeners(caplog):
    monitor, tick = watched(0.9)
    heard = []
    monitor.on_sample.connect(lambda _: 1 / 0)
    monitor.on_sample.connect(heard.append)

    tick(2)

    assert len(heard) == 2
    assert "ZeroDivisionError" in caplog.text


def test_a_listener_may_ask_the_monitor():
    monitor, tick = watched(0.9)
    heard = []
    monitor.on_alert.connect(lambda _: heard.append(monitor.health()["level"]))

    tick()

    assert heard == ["critical"]


def test_is_critical_reads_again_what_is_older_than_a_second():
    clock = FakeClock()
    sampler = ScriptedSampler([0.5, 0.9], clock=clock)
    monitor = MemoryMonitor(sampler=sampler, clock=clock)
    monitor.tick()

    assert not monitor.is_critical()
    clock.advance(1.5)
    assert monitor.is_critical()
    assert len(monitor.samples) == 1


# ----- leaks


def leaking(minutes, mib_a_minute=1.0):
    return [round((100 + mib_a_minute * n) * MIB) for n in range(minutes)]


def test_a_leak_is_announced_once_when_it_is_found():
    monitor, tick = watched(*leaking(400))
    heard, verdicts = [], []
    monitor.on_leak.connect(heard.append)
    monitor.on_verdict.connect(lambda result: verdicts.append(result.verdict))

    tick(400)

    assert [result.detected for result in heard] == [True]
    assert verdicts[-1] == "leak"
    assert monitor.detect_leak().detected
    assert monitor.health()["leak"]["verdict"] == "leak"


def test_a_leak_is_logged_with_what_to_do(caplog):
    _, tick = watched(*leaking(400))

    with caplog.at_level(logging.WARNING, "memguard"):
        tick(400)

    assert "verdict leak" in caplog.text


def test_there_is_no_verdict_without_samples():
    monitor, tick = watched(0.5)

    assert monitor.detect_leak().verdict == "insufficient"
    assert tick(3).detect_leak().verdict == "insufficient"


def test_bytes_that_are_explained_are_no_leak():
    held = [0]
    sizes = leaking(400)
    monitor, tick = watched(*sizes)
    monitor.explain("cache", lambda: held[0])
    heard = []
    monitor.on_leak.connect(heard.append)

    for size in sizes:
        held[0] = size - 100 * MIB
        tick()

    assert heard == []
    assert monitor.health()["explained_bytes"]["cache"] == held[0]


def test_an_explanation_can_be_taken_back_and_one_that_fails_counts_as_nothing(caplog):
    monitor, tick = watched(0.5)
    forget = monitor.explain("cache", lambda: 5)
    monitor.explain("broken", lambda: 1 / 0)

    tick()
    forget()

    assert "'broken' cannot be explained" in caplog.text
    assert monitor.health()["explained_bytes"].keys() == {"caches"}
    with pytest.raises(TypeError, match="read is a callable"):
        monitor.explain("cache", 5)


# ----- running


def test_started_it_samples_by_itself_until_it_is_stopped():
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5]), sample_interval=0.001)
    three = threading.Event()
    monitor.on_sample.connect(lambda _: len(monitor.samples) > 2 and three.set())

    monitor.start()
    monitor.start()
    assert three.wait(LONG)
    monitor.stop()
    monitor.stop()
    count = len(monitor.samples)

    assert not monitor.running
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if "monitor" in t.name]
    assert len(monitor.samples) == count


def test_the_first_sample_comes_at_once():
    with MemoryMonitor(sampler=ScriptedSampler([0.5]), sample_interval=3600) as monitor:
        deadline = time.monotonic() + LONG
        while not monitor.samples and time.monotonic() < deadline:
            time.sleep(0.001)

        assert len(monitor.samples) == 1


def test_entered_with_async_with_it_runs_until_it_is_left():
    async def main():
        async with MemoryMonitor(sampler=ScriptedSampler([0.5])) as monitor:
            assert monitor.running
        return monitor

    assert not asyncio.run(main()).running


def test_a_sampler_that_fails_is_logged_once_and_tried_again(caplog):
    calls = [0]
    again = threading.Event()

    def sampler():
        calls[0] += 1
        if calls[0] > 3:
            again.set()
        raise OSError("no figures today")

    with MemoryMonitor(sampler=sampler, sample_interval=0.001):
        assert again.wait(LONG)

    assert caplog.text.count("could not take a sample") == 1


def test_a_monitor_that_nobody_holds_ends_its_thread():
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5]), sample_interval=3600)
    monitor.start()
    thread = monitor._clockwork._thread
    gone = weakref.ref(monitor)

    del monitor
    deadline = time.monotonic() + LONG
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.001)
    thread.join(LONG)

    assert not thread.is_alive()


def test_a_listener_may_stop_the_monitor():
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5]), sample_interval=0.001)
    stopped = threading.Event()

    def stop(_):
        monitor.stop()
        stopped.set()

    monitor.on_sample.connect(stop)
    monitor.start()

    assert stopped.wait(LONG)
    assert not monitor.running


def test_the_environment_sets_the_interval_and_can_keep_it_off(monkeypatch):
    monkeypatch.setenv("MEMGUARD_SAMPLE_INTERVAL", "5")
    monkeypatch.setenv("MEMGUARD_MONITOR", "off")
    settings.cache_clear()
    monitor = MemoryMonitor()

    monitor.start()

    assert monitor._config.sample_interval == 5.0
    assert not monitor.running


def test_a_log_line_comes_at_each_interval(caplog):
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5]), sample_interval=3600, log_interval=0.001)

    with caplog.at_level(logging.INFO, "memguard"), monitor:
        deadline = time.monotonic() + LONG
        while caplog.text.count("verdict insufficient") < 2 and time.monotonic() < deadline:
            time.sleep(0.001)

    assert "memguard: 512 MiB resident, 512 MiB of 1 GiB in use (50 %, scripted), verdict insufficient" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_in_a_forked_child_it_runs_on_with_a_history_of_its_own():
    monitor = MemoryMonitor(sampler=ScriptedSampler([0.5]), sample_interval=3600)
    monitor.tick()
    monitor.tick()
    with monitor:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            deadline = time.monotonic() + LONG
            while not monitor.samples and time.monotonic() < deadline:
                time.sleep(0.001)
            os.write(writing, f"{len(monitor.samples)} {monitor.running}".encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)

    assert said == b"1 True"


# ----- health


def test_health_is_ready_for_json_and_whole():
    with MemoryMonitor(breaker=MemoryCircuitBreaker()) as monitor:
        with monitor.track("import"):
            pass
        gc.collect()
        health = json.loads(json.dumps(monitor.health()))

    assert health["state"] == "closed"
    assert health["operations"]["import"]["count"] == 1
    assert health["leak"]["verdict"] == "insufficient"
    assert health["gc"]["runs"] >= 1
    assert health["gc"]["seconds"] > 0
    assert health["allocator"]["name"]


def test_health_without_a_breaker_tells_what_was_read():
    health = watched(0.5)[1]().health()

    assert (health["percent"], health["source"], health["level"]) == (50.0, "scripted", "normal")


# ----- samples in a file


def test_samples_survive_the_trip_through_a_file(tmp_path):
    monitor, tick = watched(*leaking(60))
    tick(60)
    path = tmp_path / "samples.jsonl"

    count = write_samples(monitor.samples, path)

    assert count == 60
    assert read_samples(path) == monitor.samples
    assert detect_leak(read_samples(path)) == detect_leak(monitor.samples)
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.jsonl"]


def test_a_line_that_is_no_sample_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    write_samples([memory_usage()], path)
    path.write_text(path.read_text() + '{"rss_bytes": 5}\n')

    with pytest.raises(ValueError, match=r"samples.jsonl, line 2: not a sample"):
        read_samples(path)


@pytest.mark.parametrize(
    "change",
    [
        {"rss_bytes": "lots"},
        {"used_bytes": None},
        {"limit_bytes": -5},
        {"rss_bytes": 5.5},
        {"rss_bytes": True},
        {"at": [1]},
        {"at": float("nan")},
        {"at": float("inf")},
        {"at": True},
        {"source": 5},
        {"python_blocks": "many"},
        {"malloc_free_bytes": -1},
    ],
    ids=str,
)
def test_a_line_whose_figures_cannot_be_is_named(tmp_path, change):
    path = tmp_path / "samples.jsonl"
    write_samples([memory_usage()] * 3, path)
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines))

    with pytest.raises(ValueError, match=rf"samples.jsonl, line 2: not a sample \({next(iter(change))} cannot be"):
        read_samples(path)


@pytest.mark.parametrize(
    "line",
    [b'{"rss_bytes": "\xff\xfe"}', b"[" * 100_000, b"[1, 2]", b"5", b"{", b"\x00", b'{"at": ' + b"9" * 5000 + b"}"],
    ids=["not UTF-8", "nested without end", "a list", "a number", "cut off", "zero bytes", "a number without end"],
)
def test_a_line_that_is_damaged_is_named(tmp_path, line):
    path = tmp_path / "samples.jsonl"
    write_samples([memory_usage()], path)
    with path.open("ab") as file:
        file.write(b"\n" + line + b"\n")

    with pytest.raises(ValueError, match=r"samples.jsonl, line 3: not a sample"):
        read_samples(path)


@pytest.mark.skipif(os.name == "nt", reason="no such modes here")
@pytest.mark.parametrize(("before", "after"), [(None, 0o644), (0o640, 0o640)], ids=["a new file", "one that was there"])
def test_who_may_read_samples_is_as_for_any_file(tmp_path, before, after):
    path = tmp_path / "samples.jsonl"
    if before is not None:
        path.touch()
        path.chmod(before)
    umask = os.umask(0o022)
    try:
        write_samples([memory_usage()], path)
    finally:
        os.umask(umask)

    assert path.stat().st_mode & 0o777 == after


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("before")

    def broken():
        yield memory_usage()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_samples(broken(), path)

    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.jsonl"]
