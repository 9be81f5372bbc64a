"""
The parts of leak detection, each by itself: shapes, scales, garbage, what collections leave, marks.
"""

from __future__ import annotations

import pytest

from memguard.policy import LeakDetector
from memguard.policy._collected import rises_evenly
from memguard.policy._floors import Scale, Shape, plateau_of, shape_of
from memguard.policy._garbage import Garbage
from memguard.policy._trend import Mark, seconds_until, trend_of

KIB, MIB = 1024, 1024**2
NOTHING = float("-inf")


def ramp(start, count, each):
    return [start + each * i for i in range(count)]


@pytest.mark.parametrize(
    ("floors", "shape"),
    [
        pytest.param(ramp(100, 11, 10), Shape.UNKNOWN, id="eleven floors"),
        pytest.param([100.0] * 12, Shape.FLAT, id="no growth"),
        pytest.param(ramp(100, 12, 0.5), Shape.FLAT, id="less growth than counts"),
        pytest.param([100, 140, 95, 150, 90, 160, 100, 150, 95, 155, 120, 160], Shape.FLAT, id="noise"),
        pytest.param([100] * 5 + [200] * 7, Shape.STEP, id="one jump"),
        pytest.param([100] * 3 + [140] * 3 + [155] * 3 + [185] * 3, Shape.STEP, id="few jumps, one large"),
        pytest.param([*ramp(100, 6, 20), *[200] * 6], Shape.UNEVEN, id="growth that has stopped"),
        pytest.param([200 - 100 * 0.8**i for i in range(12)], Shape.FADING, id="a curve that bends"),
        pytest.param([*ramp(100, 12, 20), *ramp(330, 12, 8)], Shape.FADING, id="less than the window before"),
        pytest.param([*[500] * 12, *ramp(100, 12, 10)], Shape.RECURRING, id="below where it was"),
        pytest.param(ramp(100, 12, 10), Shape.RISING, id="a straight line"),
        pytest.param([*ramp(100, 12, 10), *ramp(220, 12, 10)], Shape.RISING, id="a long straight line"),
    ],
)
def test_twelve_floors_have_one_shape(floors, shape):
    assert shape_of(floors, 10, NOTHING) is shape


def test_what_was_given_back_later_does_not_count_as_growth():
    assert shape_of([*ramp(100, 11, 50), 100], 10, NOTHING) is Shape.FLAT


def test_a_peak_that_left_the_window_is_remembered():
    assert shape_of(ramp(100, 12, 10), 10, 1000) is Shape.RECURRING


def test_the_plateau_of_a_curve_that_halves_is_where_it_leads():
    floors = [200 - 100 * 0.5 ** (i / 3) for i in range(12)]

    assert plateau_of(floors) == pytest.approx(200, rel=0.03)


def scale_with(floors, patience=6.0):
    scale = Scale(patience)
    for floor in floors:
        scale.add(floor, floor, 0.0, 1.0)
    return scale


def test_a_scale_stands_after_as_many_rises_as_patience_asks_for():
    assert not scale_with(ramp(100, 16, 10)).standing
    assert scale_with(ramp(100, 17, 10)).standing


def test_a_step_says_nothing_of_growth_that_does_not_stand_yet():
    one, later = (scale_with([*ramp(100, 15, 10), *[1000] * count]) for count in (3, 10))

    assert one.shape is later.shape is Shape.STEP
    assert one.passes == later.passes == 2


def test_a_step_without_growth_at_its_end_takes_a_standing_alarm_back():
    one, later = (scale_with([*ramp(100, 30, 10), *[1000] * count]) for count in (5, 10))

    assert one.shape is later.shape is Shape.STEP
    assert one.passes == 7
    assert later.passes < 5


def test_growth_counts_only_if_it_is_there_without_what_is_explained_too():
    scale = Scale(6.0)
    for floor in ramp(100, 30, 10):
        scale.add(floor, 100, 0.0, 1.0)

    assert scale.passes == 0


def garbage_after_a_fall(*, rises=200):
    garbage = Garbage()
    floors = ramp(0, 20, 100 * KIB)
    garbage.see(2 * MIB, floors, 5)
    return [garbage.see(i * 100 * KIB, floors, 5) for i in range(rises)]


def test_garbage_explains_the_rise_after_a_fall_that_took_growth_back():
    assert garbage_after_a_fall()[:5] == [i * 100 * KIB for i in range(5)]


def test_garbage_explains_two_and_a_half_falls_at_most():
    assert max(garbage_after_a_fall()) == 5 * MIB


def test_garbage_explains_nothing_once_the_next_fall_is_overdue():
    explained = garbage_after_a_fall(rises=400)

    assert explained[189] > 0
    assert not any(explained[191:])


@pytest.mark.parametrize(
    ("floors", "fall_to"),
    [
        pytest.param([0] * 20, 2 * MIB - 100 * KIB, id="a small fall"),
        pytest.param([0] * 20, 0, id="the end of a spike"),
        pytest.param(ramp(0, 20, 10 * MIB), 0, id="a part of a slow descent"),
    ],
)
def test_other_falls_explain_nothing(floors, fall_to):
    garbage = Garbage()
    garbage.see(2 * MIB, floors, 5)

    assert [garbage.see(fall_to + i * KIB, floors, 5) for i in range(5)] == [0] * 5


@pytest.mark.parametrize(
    ("floors", "rises"),
    [
        pytest.param([0, 100, 200, 300], True, id="even"),
        pytest.param([0, 60, 200, 300], True, id="nearly even"),
        pytest.param([0, 10, 20, 30], False, id="too little"),
        pytest.param([0, 150, 160, 300], False, id="a pause"),
        pytest.param([0, 50, 100, 150, 900], False, id="a jump"),
        pytest.param([0, 200, 350, 420], False, id="fading"),
        pytest.param([300, 200, 100, 0], False, id="falling"),
    ],
)
def test_what_collections_leave_rises_only_evenly(floors, rises):
    assert rises_evenly(floors, 100) is rises


def test_what_collections_left_is_forgotten_with_the_blocks():
    detector = LeakDetector()
    for i in range(480):
        blocks = 400_000 + 600 * (i % 110) + 60 * i
        detector.update(10.0 * i, 300 * MIB, python_blocks=blocks, gc_runs=i // 110)
    assert detector.report()

    alarms = [detector.update(4800.0 + 10 * i, 300 * MIB) for i in range(240)]

    assert not alarms[-1]


def test_a_long_pause_starts_the_block_anew():
    detector = LeakDetector()
    detector.update(0.0, 1)
    detector.update(10.0, 1)

    for i in range(60):
        detector.update(1000.0 + 10 * i, 100 * MIB)

    assert detector.report().first_sample == (1000.0, 100 * MIB)


def test_a_joined_mark_has_the_lowest_and_the_highest_of_both():
    early, late = Mark(0.0, 10, 1.0, 20), Mark(2.0, 5, 3.0, 30)

    assert early.joined(late) == late.joined(early) == Mark(2.0, 5, 3.0, 30)


def test_the_slope_is_the_median_of_all_pairs():
    marks = [Mark(float(i), 100 * i, float(i), 100 * i) for i in range(12)]
    marks[4] = Mark(4.0, 100_000, 4.0, 100_000)

    slope, low, high = trend_of(marks)

    assert slope == pytest.approx(100)
    assert low == pytest.approx(100)
    assert high == pytest.approx(100)


def test_time_to_the_limit_goes_by_the_highest_peak_carried_forward():
    marks = [Mark(0.0, 0, 0.0, 100), Mark(10.0, 100, 15.0, 400)]

    assert seconds_until(1000, marks, 10.0, 20.0) == (1000 - 450) / 10
    assert seconds_until(100, marks, 10.0, 20.0) == 0
