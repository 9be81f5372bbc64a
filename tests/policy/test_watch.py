from __future__ import annotations

import pytest

from memguard.policy import MinuteGrowth, WatchLines
from memguard.values import Level, MemoryUsage

GB = 10**9


def usage(rss_bytes, used_bytes, limit_bytes=64 * GB):
    return MemoryUsage(rss_bytes, rss_bytes, used_bytes, limit_bytes, "scripted", 0.0)


def test_there_is_no_growth_before_a_minute_has_passed():
    growth = MinuteGrowth()

    assert [growth.observe(float(second), second) for second in range(54)] == [None] * 54
    assert growth.observe(60.0, 60) is not None


@pytest.mark.parametrize("interval", [0.1, 1.0, 7.0, 60.0, 300.0])
def test_steady_growth_is_seen_at_its_rate_however_often_one_looks(interval):
    growth = MinuteGrowth()
    seen = [growth.observe(n * interval, round(1000 * n * interval)) for n in range(int(1200 / interval) + 1)]

    assert seen[-1] == pytest.approx(60_000, rel=0.001)


def test_growth_is_that_of_the_last_minute_not_of_the_hour():
    growth = MinuteGrowth()
    for second in range(3600):
        growth.observe(float(second), 1000 * second)

    late = [growth.observe(float(second), 3_600_000) for second in range(3600, 3600 + 70)]

    assert late[-1] == 0


def test_it_remembers_a_dozen_marks():
    growth = MinuteGrowth()
    for n in range(100_000):
        growth.observe(n / 100, n)

    assert len(growth._marks) <= 13


def test_lines_follow_one_another():
    assert WatchLines.of(None, None) == WatchLines(0.8 * 14 / 16, 0.8)
    assert WatchLines.of(None, "2 GB") == WatchLines(1_750_000_000, 2 * GB)
    assert WatchLines.of("1 GB", None) == WatchLines(GB, 0.8)


def test_a_share_and_a_size_may_stand_side_by_side():
    lines = WatchLines.of("1 GB", "50%")

    assert lines.level(Level.NORMAL, usage(2 * GB, 3 * GB)) is Level.WARNING
    assert lines.level(Level.NORMAL, usage(2 * GB, 40 * GB)) is Level.CRITICAL
