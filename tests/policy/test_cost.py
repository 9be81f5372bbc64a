"""
What a call costs, as far as calls were measured. Pure.
"""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard.policy import Features, FunctionCost, cost_bytes, features, is_overrun, tolerance_bytes

MIB = 1024**2
SPARE = 50 * MIB


def measured(*sizes, asked=Features(100.0), hidden=0):  # noqa: B008 - frozen
    cost = FunctionCost()
    for size in sizes:
        cost = cost.measured(asked, size, hidden, SPARE)
    return cost


class Evil:
    @property
    def nbytes(self):
        raise RuntimeError("no size today")

    def __len__(self):
        raise ValueError


class Sized:
    nbytes = 1234


class Table:
    """As a table of any library tells its size."""

    shape = 4, 5


def test_arguments_tell_their_size_and_the_largest_number(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 500)

    assert features((b"12345", [1, 2, 3]), {"n": -7, "x": 2.5}) == Features(8, 7)
    assert features((path,), {}) == Features(500, 0)
    assert features((str(path),), {}) == Features(500, 0)
    assert features((Sized(),), {}) == Features(1234, 0)
    assert features((Table(), memoryview(b"123")), {}) == Features(23, 0)
    with path.open("rb") as file:
        assert features((file, io.BytesIO(b"12")), {}) == Features(502, 0)
    closed = io.BytesIO()
    closed.close()
    assert features((closed,), {}) == Features(0, 0)


class Query:
    """A query of a database: its length is known once all rows are loaded."""

    def __len__(self):
        raise AssertionError("was loaded")

    def __getattr__(self, name):
        raise AssertionError("was loaded")

    @property
    def __class__(self):
        raise AssertionError("was loaded")


class Counted(list):
    """A list that tells of another length."""

    def __len__(self):
        raise AssertionError("was asked")


def test_what_would_do_work_to_tell_its_size_is_not_asked():
    assert features((Query(), Counted([1, 2])), {"rows": Query()}) == Features(2, 0)


def test_a_number_that_no_float_holds_tells_nothing():
    assert features((10**400, 3), {}) == Features(0, 3)


def test_odd_arguments_tell_nothing_and_break_nothing():
    assert features(
        (Evil(), object(), float("nan"), float("inf"), None), {"path": "a/b/c that is no file"}
    ) == Features(21, 0)


@given(st.floats(0, 1e18), st.floats(0, 1e18))
def test_arguments_of_one_class_differ_by_half_an_octave_at_most(one, other):
    if Features(one).key == Features(other).key and min(one, other) >= 1:
        assert max(one, other) <= min(one, other) * math.sqrt(2) * (1 + 1e-9)


def test_nothing_known_half_of_the_room_is_booked_and_one_more_byte():
    assert FunctionCost().booked_bytes(Features(), None, 1000) == 501


def test_a_booking_is_never_cut_to_less_than_what_fits_when_nobody_runs():
    assert measured(2000).booked_bytes(Features(100.0), 2000, 1000) == 1000


def test_one_that_stands_out_is_taken_by_the_room_above_the_threshold():
    cost = measured(70 * MIB, 71 * MIB, 74 * MIB, 90 * MIB)
    assert cost.estimate(Features(100.0), SPARE) == 74 * MIB
    assert cost.estimate(Features(100.0), 20 * MIB) == 90 * MIB


def test_a_low_measurement_in_which_much_could_hide_tells_nothing():
    cost = measured(20 * MIB)
    assert (
        cost.measured(Features(100.0), 1 * MIB, 30 * MIB, SPARE).of(Features(100.0)).points
        == cost.of(Features(100.0)).points
    )
    assert len(cost.measured(Features(100.0), 10 * MIB, 0, SPARE).of(Features(100.0)).points) == 2


def test_a_larger_argument_of_the_same_class_is_taken_to_cost_more():
    cost = measured(10 * MIB, asked=Features(64.0))
    assert cost.estimate(Features(80.0), SPARE) == math.ceil(10 * MIB * 80 / 64)
    assert measured(10 * MIB, asked=Features(80.0)).estimate(Features(65.0), SPARE) == 10 * MIB


def test_it_is_due_three_times_and_then_ever_more_rarely():
    cost, due = FunctionCost(), []
    for call in range(120):
        if cost.is_due(Features(100.0), cost.estimate(Features(100.0), SPARE)):
            due.append(call)
            cost = cost.measured(Features(100.0), 10 * MIB, 0, SPARE)
        else:
            cost = cost.ended(Features(100.0))
    assert due == [0, 1, 2, 19, 52, 117]


def test_the_more_went_well_the_more_may_run_at_once():
    cost = measured(MIB)
    for _ in range(99):
        cost = cost.ended(Features(100.0))
    assert cost.most_at_once == 10
    assert cost.contradicted(Features(100.0), 5 * MIB, SPARE).most_at_once == 5


def test_what_contradicts_raises_the_estimate():
    cost = measured(10 * MIB).contradicted(Features(100.0), 5 * MIB, SPARE)
    assert cost.estimate(Features(100.0), SPARE) == 15 * MIB


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_an_estimate_is_one_of_the_last_measurements_and_at_most_two_are_below_the_top(sizes):
    cost = measured(*sizes)
    points = sorted(point.nbytes for point in cost.of(Features(100.0)).points)
    assert cost.estimate(Features(100.0), SPARE) in points[-2:]
    assert len(points) <= 16


@pytest.mark.parametrize("bad", [-1, -0.5, float("nan"), float("inf")])
def test_a_cost_that_is_no_number_of_bytes_is_refused(bad):
    with pytest.raises(ValueError, match=str(bad)):
        cost_bytes(bad)


def test_a_cost_is_rounded_up():
    assert cost_bytes(1.2) == 2
    assert cost_bytes("1 KiB") == 1024


def test_what_is_clearly_more_is_half_as_much_again_and_four_mebibytes():
    assert not is_overrun(10 * MIB, 19 * MIB)
    assert is_overrun(10 * MIB, 19 * MIB + 1)
    assert tolerance_bytes(80 * MIB) == 10 * MIB
    assert tolerance_bytes(MIB) == 4 * MIB
