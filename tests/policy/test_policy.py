"""
Decisions without a machine: lines, circuit, ledger, pace, chunk sizes.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard.policy import (
    ChunkSize,
    Circuit,
    Lines,
    State,
    next_circuit,
    next_level,
    reading_interval,
    slice_size,
)
from memguard.values import Level

GIB = 1024**3


def run(fractions, *, start=Circuit(), seconds=1.0):  # noqa: B008 - frozen
    lines = Lines.of(0.8).at(GIB)
    circuit, now, states = start, 0.0, []
    for fraction in fractions:
        now += seconds
        circuit = next_circuit(circuit, int(fraction * GIB), lines, now)
        states.append(circuit.state.value)
    return circuit, states


def test_warn_and_close_follow_open():
    assert Lines.of("80%") == Lines(0.8, 0.75, pytest.approx(0.7))
    assert Lines.of(1600, close_at=None) == Lines(1600, 1500, 1400)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"open_at": 0.8, "close_at": 0.9}, "close_at < open_at"),
        ({"open_at": 0.8, "close_at": 0.8}, "close_at < open_at"),
        ({"open_at": 0.8, "warn_at": 0.9}, "warn_at <= close_at"),
        ({"open_at": "512 MiB", "close_at": "1 GiB"}, "close_at < open_at"),
    ],
)
def test_lines_out_of_order_are_refused_with_their_values(lines, words):
    with pytest.raises(ValueError, match=f"need {words}, got warn_at="):
        Lines.of(**lines)


def test_an_absolute_line_above_95_percent_of_the_limit_acts_there():
    lines = Lines.of(10 * GIB).at(GIB)

    assert lines.capped
    assert lines.open == int(GIB * 0.95)
    assert lines.warn <= lines.close < lines.open


def test_lines_of_two_kinds_are_put_in_order_at_the_limit():
    lines = Lines.of(0.5, close_at="600 MiB").at(GIB)

    assert lines.warn <= lines.close < lines.open == GIB // 2


@given(
    st.floats(0.01, 1.0),
    st.lists(st.integers(0, 2 * GIB), max_size=30),
)
def test_the_level_is_critical_exactly_from_open_until_below_close(open_at, readings):
    lines = Lines.of(open_at).at(GIB)
    level = Level.NORMAL
    for used in readings:
        before, level = level, next_level(level, used, lines)
        if used >= lines.open:
            assert level is Level.CRITICAL
        elif used < lines.close:
            assert level is not Level.CRITICAL
        else:
            assert level is max(before, Level.WARNING)


def test_it_opens_at_once_and_stays_open_until_below_the_closing_line():
    _, states = run([0.79, 0.81, 0.78, 0.76, 0.74])

    assert states == ["closed", "open", "open", "open", "half-open"]


def test_half_open_admits_a_ramp_and_closes_after_calm_readings():
    circuit, states = run([0.9, 0.5])
    assert circuit.permits == 1

    circuit, states = run([0.9, 0.5, 0.5])
    assert circuit.permits == 2
    circuit, states = run([0.9, 0.5, 0.5, 0.5])
    assert circuit.permits == 4

    circuit, states = run([0.9, 0.5, 0.5, 0.5, 0.5])
    assert states[-1] == "closed"


def test_the_ramp_goes_up_by_time_or_by_work_that_ended_and_not_by_readings():
    lines = Lines.of(0.8).at(GIB)
    circuit, _ = run([0.9, 0.5])

    for _ in range(50):
        circuit = next_circuit(circuit, GIB // 2, lines, 2.5, step_seconds=1.0)
    assert circuit.permits == 1
    for _ in range(50):
        circuit = next_circuit(circuit, GIB // 2, lines, 2.5, finished=1)
    assert circuit.permits == 2
    for _ in range(50):
        circuit = next_circuit(circuit, GIB // 2, lines, 3.5, finished=1)
    assert circuit.permits == 4


def test_a_reading_between_the_lines_does_not_lengthen_the_ramp():
    circuit, _ = run([0.9, 0.5, 0.78])

    assert (circuit.state, circuit.permits) == (State.HALF_OPEN, 1)


def test_one_that_opens_again_soon_stays_open_longer_each_time():
    circuit, _ = run([0.9, 0.5, 0.9])
    assert circuit.dwell_seconds == 1.0

    circuit, states = run([0.9, 0.5, 0.9, 0.5, 0.5, 0.9], seconds=0.6)
    assert states == ["open", "half-open", "open", "open", "half-open", "open"]
    assert circuit.dwell_seconds == 2.0


def test_where_very_little_is_used_it_stays_open_for_four_seconds_at_most():
    lines = Lines.of(0.8).at(GIB)
    circuit = Circuit(State.OPEN, since=100.0, dwell_seconds=32.0)

    assert next_circuit(circuit, int(0.4 * GIB), lines, 104.0).state is State.OPEN
    assert next_circuit(circuit, int(0.3 * GIB), lines, 103.9).state is State.OPEN
    assert next_circuit(circuit, int(0.3 * GIB), lines, 104.0).state is State.HALF_OPEN


def test_after_a_calm_minute_an_opening_is_a_new_story():
    circuit, _ = run([0.9, 0.5, 0.5, 0.5, 0.5, 0.9])
    assert circuit.dwell_seconds == 1.0

    calm, _ = run([0.9, 0.5, 0.5, 0.5, 0.5])
    later = next_circuit(calm, int(0.9 * GIB), Lines.of(0.8).at(GIB), 1000.0)
    assert later.dwell_seconds == 0.0


@pytest.mark.parametrize(
    ("headroom", "seconds"), [(0, 0.005), (128 * 1024**2, 0.015625), (GIB, 0.125), (2 * GIB, 0.25), (100 * GIB, 1.0)]
)
def test_readings_come_faster_as_headroom_shrinks(headroom, seconds):
    assert reading_interval(headroom, 1.0) == seconds


def test_the_interval_that_somebody_asks_for_is_the_longest():
    assert reading_interval(100 * GIB, 0.001) == 0.001


def test_chunks_halve_down_to_the_smallest_and_double_back_after_calm():
    size = ChunkSize(100, 25, 100)
    size = size.refused()
    assert size.items == 50
    size = size.refused()
    assert size.items == 25
    assert size.refused() is None

    for _ in range(4):
        size = size.done()
    assert size.items == 50
    for _ in range(10):
        size = size.done()
    assert size.items == 100


@given(st.integers(1, 10**6), st.floats(0, 10), st.floats(1e-4, 1))
def test_a_slice_is_at_least_one_item_and_at_most_twice_the_last(items, seconds, target):
    assert 1 <= slice_size(items, seconds, target) <= items * 2


def stuck_at(fraction, seconds, *, reserved_bytes=0):
    lines, circuit = Lines.of(0.8).at(GIB), Circuit()
    for now in (0.0, seconds):
        circuit = next_circuit(circuit, int(fraction * GIB), lines, now, reserved_bytes=reserved_bytes)
    return circuit, lines


def test_what_stays_open_with_nothing_reserved_and_nothing_changing_is_tried_with_raised_lines():
    circuit, lines = stuck_at(0.85, 30.0)

    assert (circuit.state, circuit.permits, circuit.level) == (State.HALF_OPEN, 1, Level.WARNING)
    assert circuit.lines(lines).open == pytest.approx(0.9 * GIB, abs=2)
    for now in (31.0, 32.0, 33.0):
        circuit = next_circuit(circuit, int(0.85 * GIB), lines, now)
    assert circuit.state is State.CLOSED
    assert next_circuit(circuit, int(0.91 * GIB), lines, 34.0).state is State.OPEN


@pytest.mark.parametrize(
    ("fraction", "seconds", "reserved_bytes"),
    [
        pytest.param(0.85, 29.0, 0, id="not for long"),
        pytest.param(0.85, 30.0, 1, id="somebody holds bytes"),
        pytest.param(0.92, 30.0, 0, id="no room is left"),
    ],
)
def test_it_is_not_stuck_while(fraction, seconds, reserved_bytes):
    assert stuck_at(fraction, seconds, reserved_bytes=reserved_bytes)[0].state is State.OPEN


def test_it_is_not_stuck_while_usage_changes():
    lines, circuit = Lines.of(0.8).at(GIB), Circuit()
    for second in range(60):
        circuit = next_circuit(circuit, int((0.82 + 0.03 * (second // 20 % 2)) * GIB), lines, float(second))

    assert circuit.state is State.OPEN


def test_raised_lines_come_back_once_usage_falls():
    circuit, lines = stuck_at(0.85, 30.0)

    circuit = next_circuit(circuit, int(0.7 * GIB), lines, 31.0)

    assert circuit.lines(lines) == lines
    assert next_circuit(circuit, int(0.81 * GIB), lines, 32.0).state is State.OPEN


def test_the_highest_line_is_seven_eighths_of_the_limit_or_the_opening_line():
    assert Lines.of(0.8).at(1000).highest() == 875
    assert Lines.of(0.95).at(1000).highest() == 950


@pytest.mark.parametrize(
    ("used", "kept", "load"),
    [
        pytest.param(850, 0, 850, id="nothing is kept"),
        pytest.param(850, 60, 790, id="what is kept does not count"),
        pytest.param(874, 500, 799, id="up to the highest line"),
        pytest.param(875, 500, 800, id="where all counts"),
        pytest.param(50, 90, 0, id="never below nothing"),
    ],
)
def test_what_the_allocator_keeps_does_not_open_the_circuit_below_the_highest_line(used, kept, load):
    assert Lines.of(0.8).at(1000).load_bytes(used, kept) == load
