"""
Leak detection over many processes: counts on seeded shapes, and what holds for any series.
"""

# ruff: noqa: B008 - the defaults of these lambdas are the numbers that each series draws for itself

from __future__ import annotations

import enum
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard.policy import LeakDetector, detect_leak

MIB = 1024**2
LENGTH = 420

# Each makes, by its own chance, a function from the sample to a part of the start size.
HEALTHY = {
    "flat": lambda c: lambda i: 0.0,
    "warm-up": lambda c: lambda i, tau=c.uniform(5, 60), a=c.uniform(0.1, 1): a * (1 - math.exp(-i / tau)),
    "step": lambda c: lambda i, at=c.uniform(20, 400), a=c.uniform(0.05, 0.6): a * (i > at),
    "sawtooth": lambda c: lambda i, p=c.uniform(5, 90), a=c.uniform(0.05, 0.5): a * (i % p) / p,
    "wave": lambda c: lambda i, p=c.uniform(10, 130), a=c.uniform(0.05, 0.4): a * (1 - math.cos(2 * math.pi * i / p)),
    "fill": lambda c: (
        lambda i, at=c.uniform(0, 200), p=c.uniform(10, 80), a=c.uniform(0.1, 0.8): a * min(1, max(0, i - at) / p)
    ),
    "spikes": lambda c: lambda i, r=random.Random(c.random()), a=c.uniform(0.1, 0.5): a * (r.random() < 0.05),
}
LEAKS = {
    "even": lambda c: lambda i, s=c.uniform(0.1, 1) / LENGTH: s * i,
    "late": lambda c: lambda i, s=c.uniform(0.3, 1) / LENGTH, on=c.uniform(40, 170): s * max(0, i - on),
    "stairs": lambda c: lambda i, s=c.uniform(0.2, 1) / LENGTH, p=c.uniform(4, 20): s * p * (i // p),
    "under a sawtooth": lambda c: (
        lambda i, s=c.uniform(0.2, 1) / LENGTH, p=c.uniform(5, 30): s * (i + 80 * (i % p) / p)
    ),
    "after a warm-up": lambda c: lambda i, s=c.uniform(0.2, 1) / LENGTH: s * i + 0.3 * (1 - math.exp(-i / 10)),
}


def series(makers, seed, each):
    for name, make in makers.items():
        for turn in range(each):
            chance = random.Random(f"{seed} {name} {turn}")
            shape, noise = make(chance), chance.uniform(0.0005, 0.006)
            base = math.exp(chance.uniform(math.log(20 * MIB), math.log(4096 * MIB)))
            yield name, [max(0, int(base * (1 + shape(i) + chance.gauss(0, noise)))) for i in range(LENGTH)]


def alarms_of(sizes, window=60):
    detector = LeakDetector(window)
    return [detector.update(float(i), size) for i, size in enumerate(sizes)]


def test_one_healthy_series_in_a_hundred_at_most_is_ever_alarmed():
    alarmed = [name for name, sizes in series(HEALTHY, 77, 15) if any(alarms_of(sizes))]

    assert len(alarmed) <= 1, alarmed


def test_nineteen_leaks_in_twenty_stand_at_the_end():
    missed = [name for name, sizes in series(LEAKS, 77, 20) if not alarms_of(sizes)[-1]]

    assert len(missed) <= 5, missed


def test_no_leak_is_called_before_it_begins():
    early = [i for _, sizes in series({"late": LEAKS["late"]}, 78, 20) for i in range(40) if alarms_of(sizes[:41])[i]]

    assert early == []


SIZES = st.lists(st.integers(0, 2**40), min_size=1, max_size=200)
WINDOWS = st.sampled_from([12, 25, 60])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 1000),
            st.integers(0, 2**40),
            st.none() | st.integers(0, 2**30),
            st.none() | st.integers(0, 2**40),
            st.none() | st.integers(0, 2**40),
            st.none() | st.integers(0, 50),
            st.integers(0, 2**40),
        ),
        max_size=150,
    ),
    WINDOWS,
)
def test_no_sane_series_raises_and_its_figures_are_numbers(samples, window):
    detector, now = LeakDetector(window), 0.0
    for pause, rss, blocks, in_use, free, runs, explained in samples:
        now += pause
        alarm = detector.update(
            now,
            rss,
            python_blocks=blocks,
            malloc_in_use_bytes=in_use,
            malloc_free_bytes=free,
            gc_runs=runs,
            explained_bytes=explained,
        )
        assert alarm is (detector.report().verdict == "leak")

    result = detector.report(2**41)

    low, high = result.growth_interval
    assert low <= result.growth_bytes_per_minute <= high
    assert math.isfinite(result.growth_percent)
    assert result.seconds_to_limit is None or result.seconds_to_limit >= 0
    assert result.recommendation


@settings(max_examples=25, deadline=None)
@given(SIZES)
def test_stored_pairs_never_raise_whatever_their_sizes(sizes):
    result = detect_leak([(i, size) for i, size in enumerate(sizes)], limit_bytes=2**41)

    assert result.first_sample == (0, sizes[0])
    assert result.detected is (result.verdict == "leak")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 8, 64]), st.sampled_from([0.001, 1.0, 3600.0]))
def test_neither_the_unit_of_size_nor_that_of_time_changes_an_alarm(seed, factor, interval):
    _, sizes = next(series(LEAKS, seed, 1))
    detector = LeakDetector()

    alarms = [detector.update(i * interval, size * factor) for i, size in enumerate(sizes)]

    assert alarms == alarms_of(sizes)


def numbers_in(thing):
    if isinstance(thing, enum.Enum):
        return 1
    if isinstance(thing, dict):
        return sum(map(numbers_in, thing.values()))
    if isinstance(thing, list | tuple):
        return sum(map(numbers_in, thing))
    names = [*getattr(thing, "__dict__", ()), *getattr(type(thing), "__slots__", ())]
    return sum(numbers_in(getattr(thing, name)) for name in names) if names else 1


def test_what_is_remembered_stops_growing():
    chance, detector, counts = random.Random(5), LeakDetector(window=12), []
    # 128 samples end a block on each of the seven scales, so that none is under way; 24 of the longest fill all.
    for i in range(128 * 30):
        detector.update(i, chance.randrange(2**40), python_blocks=i, malloc_in_use_bytes=i, malloc_free_bytes=1)
        if (i + 1) % 128 == 0:
            counts.append(numbers_in(detector))

    assert len(set(counts[12:])) == 1
    assert counts[-1] < 4000


@pytest.mark.parametrize("window", [12, 24, 60, 120])
def test_a_steady_leak_is_called_after_about_two_windows(window):
    alarms = alarms_of([100 * MIB + i * MIB for i in range(5 * window)], window)

    assert 2 * window - window // 6 <= alarms.index(True) <= 2.5 * window
