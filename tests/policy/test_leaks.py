"""
Leak detection: what it says of one process after the other.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import random

import pytest

from memguard.policy import LeakDetectionResult, LeakDetector, detect_leak
from memguard.values import MemoryUsage

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def feed(detector, sizes, *, interval=10.0, start=0.0, **signals):
    """Feed *sizes*, and the series in *signals* beside them; return what each sample was answered with."""
    rows = zip(*signals.values(), strict=True) if signals else ((),) * len(sizes)
    return [
        detector.update(start + interval * i, int(size), **dict(zip(signals, map(int, row), strict=True)))
        for i, (size, row) in enumerate(zip(sizes, rows, strict=True))
    ]


def judge(sizes, *, limit=None, **signals):
    detector = LeakDetector()
    feed(detector, sizes, **signals)
    return detector.report(limit)


def noisy(shape, count=480, *, base=200 * MIB, noise=0.002, seed=1):
    """Return *count* sizes that follow *shape*, a function from the sample to a part of *base*, under noise."""
    chance = random.Random(seed)
    return [base * (1 + shape(i) + chance.gauss(0, noise)) for i in range(count)]


def state_of(thing):
    """Return all that *thing* holds, as plain lists."""
    if isinstance(thing, enum.Enum):
        return thing
    if isinstance(thing, dict):
        return [state_of(value) for value in thing.values()]
    if isinstance(thing, list | tuple):
        return [state_of(value) for value in thing]
    names = [*getattr(thing, "__dict__", ()), *getattr(type(thing), "__slots__", ())]
    return [state_of(getattr(thing, name)) for name in names] if names else thing


def usage(at, nbytes, **counters):
    return MemoryUsage(nbytes + 5 * MIB, nbytes, nbytes, GIB, "explicit", at, **counters)


# What the requirements say, bullet by bullet.


def test_leak_detection_from_resident_size_finds_a_steady_leak():
    result = judge(noisy(lambda i: 0.001 * i))

    assert result.detected
    assert result
    assert result.verdict == "leak"


def test_leak_detection_from_counters_finds_what_the_swing_of_resident_size_hides():
    swings = noisy(lambda i: 0.3 * (1 - math.cos(i / 30)))
    blocks = [1_000_000 + 300 * i for i in range(480)]

    assert not judge(swings)
    assert judge(swings, python_blocks=blocks)


@pytest.mark.parametrize(
    ("blocks_per_sample", "malloc_per_sample", "cause"),
    [
        pytest.param(4000, 0, "python objects", id="blocks rise"),
        pytest.param(4000, 100 * KIB, "python objects", id="blocks rise, and malloc with them"),
        pytest.param(0, 300 * KIB, "native", id="malloc in use rises, blocks do not"),
        pytest.param(0, 0, "mapped or fragmented", id="neither rises"),
    ],
)
def test_the_counters_name_the_cause(blocks_per_sample, malloc_per_sample, cause):
    result = judge(
        noisy(lambda i: 0.0015 * i),
        python_blocks=[500_000 + blocks_per_sample * i for i in range(480)],
        malloc_in_use_bytes=[50 * MIB + malloc_per_sample * i for i in range(480)],
        malloc_free_bytes=[2 * MIB] * 480,
    )

    assert result.verdict == "leak"
    assert result.cause == cause


def test_the_result_says_detected_growth_percent_first_and_last_sample_and_a_recommendation():
    samples = [(float(i), 100 * MIB + i * MIB) for i in range(101)]

    result = detect_leak(samples)

    assert result.detected is True
    assert result.growth_percent == pytest.approx(100)
    assert (result.first_sample, result.last_sample) == (samples[0], samples[-1])
    assert "60 MiB a minute" in result.recommendation


def test_warm_up_is_no_leak():
    detector = LeakDetector()
    alarms = feed(detector, noisy(lambda i: 1 - math.exp(-i / 50)))

    assert not any(alarms)


def test_sawtooth_is_no_leak():
    assert not any(feed(LeakDetector(), noisy(lambda i: 0.5 * (i % 70) / 70)))


def test_steps_are_no_leak():
    assert not any(feed(LeakDetector(), noisy(lambda i: 0.3 * (i > 100) + 0.4 * (i > 300))))


def test_periodic_load_is_no_leak():
    assert not any(feed(LeakDetector(), noisy(lambda i: 0.2 * (1 - math.cos(i / 12)))))


def test_noise_is_no_leak():
    assert not any(feed(LeakDetector(), noisy(lambda i: 0.0, noise=0.02)))


def test_a_sawtooth_that_comes_down_less_each_time_is_a_leak():
    assert judge(noisy(lambda i: 0.3 * (i % 20) / 20 + 0.001 * i))


def test_growth_per_minute_has_an_interval_that_holds_the_truth():
    per_minute = 200 * MIB * 0.001 * 6

    result = judge(noisy(lambda i: 0.001 * i))

    low, high = result.growth_interval
    assert low < per_minute < high
    assert result.growth_bytes_per_minute == pytest.approx(per_minute, rel=0.2)


def test_time_left_until_the_limit_is_that_of_the_line():
    sizes = noisy(lambda i: 0.001 * i)
    left = (400 * MIB - sizes[-1]) / (200 * MIB * 0.001) * 10

    assert judge(sizes, limit=400 * MIB).seconds_to_limit == pytest.approx(left, rel=0.2)


@pytest.mark.parametrize(
    ("sizes", "verdict"),
    [
        pytest.param(noisy(lambda i: 0.0, 59), "insufficient", id="fewer samples than a window"),
        pytest.param(noisy(lambda i: 0.0, 60), "stable", id="flat"),
        pytest.param(noisy(lambda i: 1 - math.exp(-i / 40), 70), "warming-up", id="growth that fades"),
        pytest.param(noisy(lambda i: 0.003 * i, 80), "suspect", id="steady growth of a window"),
        pytest.param(noisy(lambda i: 0.003 * i, 130), "leak", id="steady growth of two windows"),
    ],
)
def test_the_verdict_is_one_of_five(sizes, verdict):
    assert judge(sizes).verdict == verdict


# The detector.


def test_what_malloc_holds_free_is_no_leak_and_the_recommendation_says_where_it_is():
    result = judge(
        [100 * MIB + i * MIB for i in range(200)],
        python_blocks=[100_000] * 200,
        malloc_in_use_bytes=[40 * MIB] * 200,
        malloc_free_bytes=[20 * MIB + i * MIB for i in range(200)],
    )

    assert result.verdict == "stable"
    assert "Freed but kept by the allocator: 219 MiB of 299 MiB" in result.recommendation
    assert "release_memory()" in result.recommendation
    assert "limit_arenas()" in result.recommendation


def test_an_alarm_ends_when_the_growth_has_ended():
    alarms = feed(LeakDetector(), noisy(lambda i: 0.003 * min(i, 150)))

    assert any(alarms)
    assert not alarms[-1]


def test_load_that_comes_back_is_an_alarm_the_first_time_only():
    # A slow rise of three windows and a fall, ten times.
    alarms = feed(LeakDetector(), noisy(lambda i: 0.5 * min(i % 600, 200, 600 - i % 600) / 200, 6000))

    assert any(alarms[:400])
    assert not any(alarms[800:])


def test_one_large_job_does_not_hide_a_leak_for_ever():
    alarms = feed(LeakDetector(window=12), noisy(lambda i: 3.0 if i < 100 else 0.0003 * (i - 100), 9000))

    assert any(alarms[: 9000 - 100])


def test_an_alarm_stands_while_the_leak_goes_on():
    alarms = feed(LeakDetector(), noisy(lambda i: 0.003 * i, 2000))

    assert all(alarms[alarms.index(True) :])


def test_a_leak_that_is_slow_for_the_window_is_found_on_a_longer_scale():
    slow = noisy(lambda i: 0.00005 * i, 4000)

    assert not judge(slow[:300])
    assert judge(slow)


def test_what_a_cache_explains_is_no_leak_while_it_fills():
    held = [min(i, 300) * MIB for i in range(480)]
    sizes = [200 * MIB + nbytes for nbytes in held]
    blocks = [100_000 + nbytes // 80 for nbytes in held]

    assert any(feed(LeakDetector(), sizes, python_blocks=blocks))
    assert not any(feed(LeakDetector(), sizes, python_blocks=blocks, explained_bytes=held))


def test_a_leak_beside_a_full_cache_is_found():
    held = [min(i, 60) * MIB for i in range(480)]
    sizes = [200 * MIB + nbytes + i * MIB // 4 for i, nbytes in enumerate(held)]

    assert feed(LeakDetector(), sizes, explained_bytes=held)[-1]


def test_a_cache_that_shrinks_does_not_look_like_a_leak_of_the_signals_it_is_not_in():
    held = [(480 - i) * MIB for i in range(480)]

    alarms = feed(
        LeakDetector(),
        [200 * MIB + nbytes for nbytes in held],
        malloc_in_use_bytes=[30 * MIB] * 480,
        explained_bytes=held,
    )

    assert not any(alarms)


def garbage(i, *, kept=0, period=110):
    """Return the live blocks of a process whose cycles wait *period* samples for a full collection."""
    return 400_000 + 600 * (i % period) + kept * i


@pytest.mark.parametrize(("kept", "leaks"), [(0, False), (60, True)])
def test_a_leak_below_a_deep_sawtooth_of_garbage_is_seen_by_what_collections_leave(kept, leaks):
    detector = LeakDetector()

    alarms = feed(
        detector,
        [300 * MIB] * 480,
        python_blocks=[garbage(i, kept=kept) for i in range(480)],
        gc_runs=[i // 110 for i in range(480)],
    )

    assert alarms[-1] is leaks
    assert detector.report().detected is leaks
    assert detector.report().cause == ("python objects" if leaks else None)


def test_garbage_that_waits_longer_than_the_last_time_is_no_leak():
    blocks = [400_000 + 600 * (i if i < 110 else i - 110) for i in range(330)]

    alarms = feed(LeakDetector(), [300 * MIB] * 330, python_blocks=blocks)

    assert not any(alarms)


def test_growth_far_beyond_the_garbage_of_the_last_time_is_a_leak():
    blocks = [400_000 + (600 * i if i < 60 else 600 * (i - 60)) for i in range(480)]

    assert feed(LeakDetector(), [300 * MIB] * 480, python_blocks=blocks)[-1]


def test_a_cache_explains_what_collections_leave():
    held = [i * 60 * 64 for i in range(480)]

    alarms = feed(
        LeakDetector(),
        [300 * MIB] * 480,
        python_blocks=[garbage(i, kept=60) for i in range(480)],
        gc_runs=[i // 110 for i in range(480)],
        explained_bytes=held,
    )

    assert not any(alarms)


def test_what_collections_leave_stops_standing_when_they_stop_coming():
    detector = LeakDetector()
    feed(
        detector,
        [300 * MIB] * 480,
        python_blocks=[garbage(i, kept=60) for i in range(480)],
        gc_runs=[i // 110 for i in range(480)],
    )

    alarms = feed(detector, [300 * MIB] * 480, python_blocks=[430_000] * 480, gc_runs=[4] * 480, start=4800.0)

    assert not alarms[-1]


def test_a_machine_that_slept_is_no_growth():
    detector = LeakDetector()
    feed(detector, [100 * MIB] * 150)

    alarms = feed(detector, noisy(lambda i: 0.0, 150, base=130 * MIB), start=100_000.0)

    assert not any(alarms)


@pytest.mark.parametrize("interval", [0.0, 5e-324, 1e-9, 1e300])
def test_times_that_make_no_sense_make_no_nonsense(interval):
    detector = LeakDetector(window=12)
    feed(detector, [i * 2**40 for i in range(60)], interval=interval)

    result = detector.report(2**50)

    assert all(map(math.isfinite, (result.growth_bytes_per_minute, *result.growth_interval)))
    assert result.recommendation


def test_a_slower_clock_is_followed_after_a_few_samples():
    detector = LeakDetector()
    feed(detector, [100 * MIB] * 60, interval=1.0)

    assert feed(detector, [100 * MIB + i * MIB for i in range(200)], interval=60.0, start=120.0)[-1]


def test_signals_that_are_missing_from_some_samples_are_judged_by_the_others():
    detector = LeakDetector()
    for i in range(1200):
        blocks = {"python_blocks": 1_000_000 + 300 * i} if i % 4 == 0 else {}
        alarm = detector.update(float(i), 500 * MIB, **blocks)

    assert alarm


def test_a_signal_that_is_no_longer_given_takes_its_alarm_with_it():
    detector = LeakDetector()
    blocks = [1_000_000 + 3000 * i for i in range(200)]
    assert feed(detector, [500 * MIB] * 200, python_blocks=blocks)[-1]

    assert not feed(detector, [500 * MIB] * 240, start=2000.0)[-1]


def test_a_start_that_is_over_is_no_longer_called_warming_up():
    assert judge(noisy(lambda i: 1 - math.exp(-i / 30), 300)).verdict == "stable"


def test_no_blocks_at_all_are_unknown_and_not_a_sign_of_native_code():
    result = judge(
        [100 * MIB + i * MIB for i in range(200)],
        python_blocks=[0] * 200,
        malloc_in_use_bytes=[50 * MIB + i * MIB for i in range(200)],
    )

    assert result.verdict == "leak"
    assert result.cause is None


def test_resident_size_alone_names_no_cause():
    result = judge(noisy(lambda i: 0.003 * i, 200))

    assert result.cause is None
    assert "python_blocks" in result.recommendation


def test_a_plateau_below_the_limit_leaves_no_time_to_it():
    result = judge(noisy(lambda i: 1 - math.exp(-i / 40), 70), limit=GIB)

    assert result.verdict == "warming-up"
    assert result.seconds_to_limit is None
    assert result.plateau_bytes == pytest.approx(400 * MIB, rel=0.15)


def test_a_process_that_does_not_grow_has_no_time_to_the_limit():
    assert judge(noisy(lambda i: 0.0), limit=GIB).seconds_to_limit is None


def test_the_reason_names_the_signal_and_the_time_scale():
    blocks = [1_000_000 + 3000 * i for i in range(200)]

    assert judge([500 * MIB] * 200, python_blocks=blocks).reason.startswith("python blocks kept rising")
    assert "over 120 samples" in judge([500 * MIB] * 200, python_blocks=blocks).reason
    assert judge([]).reason == "fewer than 60 samples"


def test_the_figures_of_a_detector_name_two_samples_that_it_was_given():
    sizes = noisy(lambda i: 0.003 * i, 200)
    given = {(10.0 * i, int(size)) for i, size in enumerate(sizes)}

    result = judge(sizes)

    assert {result.first_sample, result.last_sample} <= given
    assert result.last_sample == (1990.0, int(sizes[-1]))
    assert result.growth_percent == pytest.approx((result.last_sample[1] / result.first_sample[1] - 1) * 100)


def test_a_limit_that_is_passed_leaves_no_time():
    assert judge(noisy(lambda i: 0.003 * i, 200), limit=100 * MIB).seconds_to_limit == 0


def test_peaks_meet_the_limit_before_the_floors_do():
    sizes = [200 * MIB + i * MIB // 2 + (100 * MIB if i % 5 == 4 else 0) for i in range(240)]

    left = judge(sizes, limit=600 * MIB).seconds_to_limit

    assert left == pytest.approx((600 - 200 - 120 - 100) * 2 * 10, rel=0.05)


def test_the_result_is_a_frozen_value():
    result = judge([])

    with pytest.raises(dataclasses.FrozenInstanceError):
        result.verdict = "leak"
    assert not hasattr(result, "__dict__")


def test_a_report_without_samples_is_insufficient():
    result = LeakDetector().report(GIB)

    assert result.verdict == "insufficient"
    assert (result.first_sample, result.last_sample, result.seconds_to_limit) == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"window": 11}, ValueError, "12 samples or more, got 11"),
        ({"window": -60}, ValueError, "-60"),
        ({"window": 60.0}, TypeError, "got 60.0"),
        ({"window": True}, TypeError, "got True"),
        ({"patience": 1.0}, ValueError, "got 1.0"),
        ({"patience": math.nan}, ValueError, "got nan"),
        ({"patience": "2"}, TypeError, "got '2'"),
    ],
)
def test_a_wrong_construction_is_refused_with_its_value(arguments, error, words):
    with pytest.raises(error, match=words):
        LeakDetector(**arguments)


@pytest.mark.parametrize(
    ("seconds", "rss_bytes", "signals", "error", "words"),
    [
        (9.0, 1, {}, ValueError, "time went back: 9.0 after 10.0"),
        (math.nan, 1, {}, ValueError, "nan"),
        (math.inf, 1, {}, ValueError, "inf"),
        ("11", 1, {}, TypeError, "'11'"),
        (True, 1, {}, TypeError, "True"),
        (11.0, -1, {}, ValueError, "rss_bytes must not be negative, got -1"),
        (11.0, 1.5, {}, TypeError, "rss_bytes must be an integer, got 1.5"),
        (11.0, True, {}, TypeError, "got True"),
        (11.0, 1, {"python_blocks": -2}, ValueError, "python_blocks must not be negative, got -2"),
        (11.0, 1, {"python_blocks": True}, TypeError, "python_blocks"),
        (11.0, 1, {"malloc_in_use_bytes": -3}, ValueError, "malloc_in_use_bytes"),
        (11.0, 1, {"malloc_free_bytes": "4"}, TypeError, "malloc_free_bytes"),
        (11.0, 1, {"gc_runs": -1}, ValueError, "gc_runs"),
        (11.0, 1, {"explained_bytes": -5}, ValueError, "explained_bytes"),
    ],
)
def test_a_wrong_sample_is_refused_with_its_value_and_leaves_no_trace(seconds, rss_bytes, signals, error, words):
    detector, untouched = LeakDetector(window=12), LeakDetector(window=12)
    for one in (detector, untouched):
        one.update(10.0, 100)

    with pytest.raises(error, match=words):
        detector.update(seconds, rss_bytes, **signals)

    assert state_of(detector) == state_of(untouched)


def test_a_wrong_limit_is_refused_with_its_value():
    with pytest.raises(ValueError, match="limit_bytes must not be negative, got -1"):
        LeakDetector().report(-1)
    with pytest.raises(TypeError, match="limit_bytes"):
        detect_leak([], limit_bytes="1 GB")


# Stored samples.


@pytest.mark.parametrize("count", [0, 1, 2, 5, 11])
def test_stored_samples_that_are_too_few_and_do_not_grow_are_insufficient(count):
    assert detect_leak([(i * 60.0, 100 * MIB) for i in range(count)]).verdict == "insufficient"


@pytest.mark.parametrize(("last_mib", "verdict"), [(149, "insufficient"), (150, "leak")])
def test_the_growth_threshold_decides_where_the_samples_are_too_few_for_better(last_mib, verdict):
    samples = [(0.0, 100 * MIB), (60.0, 120 * MIB), (120.0, last_mib * MIB)]

    assert detect_leak(samples, growth_threshold=1.5).verdict == verdict


def test_two_samples_never_make_a_leak():
    assert detect_leak([(0.0, 100 * MIB), (60.0, 500 * MIB)]).verdict == "insufficient"


@pytest.mark.parametrize("count", [12, 20, 24, 30, 60, 120, 480])
def test_stored_samples_of_a_ramp_are_a_leak_however_many_there_are(count):
    assert detect_leak([(i * 60.0, 100 * MIB + i * 60 * MIB // count) for i in range(count)], growth_threshold=1.4)


@pytest.mark.parametrize("count", [12, 20, 24, 30, 60, 120, 480])
def test_stored_samples_with_one_step_are_no_leak_however_many_there_are(count):
    assert not detect_leak([(i * 60.0, (200 if i > count // 2 else 100) * MIB) for i in range(count)])


def test_stored_samples_with_a_last_spike_are_no_leak():
    assert not detect_leak([(i * 60.0, 100 * MIB) for i in range(59)] + [(3600.0, 160 * MIB)])


def test_stored_usages_are_judged_without_file_pages_and_with_their_counters():
    samples = [
        usage(
            60.0 * i,
            100 * MIB + i * MIB,
            python_blocks=100_000 + 10_000 * i,
            malloc_in_use_bytes=20 * MIB,
            malloc_free_bytes=MIB,
        )
        for i in range(60)
    ]

    result = detect_leak(samples, limit_bytes=GIB)

    assert result.verdict == "leak"
    assert result.cause == "python objects"
    assert (result.first_sample, result.last_sample) == (samples[0], samples[-1])
    assert result.growth_percent == pytest.approx(59)
    assert result.seconds_to_limit == pytest.approx((1024 - 159) * 60, rel=0.05)


def test_stored_usages_without_a_figure_for_anonymous_memory_are_judged_by_resident_size():
    samples = [dataclasses.replace(usage(60.0 * i, (100 + i) * MIB), anon_bytes=0) for i in range(60)]

    assert detect_leak(samples)


def test_stored_samples_may_come_from_a_generator():
    assert detect_leak((i * 60.0, 100 * MIB + i * MIB) for i in range(60)).detected


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [
        ([(0.0, 1), (-1.0, 1)], ValueError, "time went back"),
        ([(0.0, -1)], ValueError, "-1"),
        ([(0.0, 1.5)], TypeError, "1.5"),
        ([7], TypeError, "pair of seconds and bytes, got 7"),
        ([(1, 2, 3)], TypeError, r"got \(1, 2, 3\)"),
    ],
)
def test_wrong_stored_samples_are_refused_with_their_values(samples, error, words):
    with pytest.raises(error, match=words):
        detect_leak(samples)


@pytest.mark.parametrize(("threshold", "error"), [(1.0, ValueError), (-2, ValueError), (math.nan, ValueError), ("2", TypeError), (True, TypeError)])  # fmt: skip
def test_a_wrong_growth_threshold_is_refused_with_its_value(threshold, error):
    with pytest.raises(error, match=repr(threshold)):
        detect_leak([], growth_threshold=threshold)


def test_every_verdict_has_words_of_its_own():
    said = {
        judge(sizes).recommendation
        for sizes in (
            [],
            [100 * MIB] * 100,
            noisy(lambda i: 1 - math.exp(-i / 40), 70),
            noisy(lambda i: 0.003 * i, 80),
            noisy(lambda i: 0.003 * i, 200),
        )
    }

    assert len(said) == 5
    assert all(isinstance(words, str) and words.endswith(".") for words in said)


def test_the_result_class_is_public():
    assert isinstance(detect_leak([]), LeakDetectionResult)
