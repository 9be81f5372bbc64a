from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard import format_bytes, parse_bytes
from memguard.units import parse_threshold


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (4096, 4096),
        ("17", 17),
        ("17 B", 17),
        ("1k", 1000),
        ("1K", 1000),
        ("1 kB", 1000),
        ("10 MB", 10_000_000),
        ("1.5GB", 1_500_000_000),
        ("1.5gb", 1_500_000_000),
        ("1M", 1_000_000),
        ("2G", 2_000_000_000),
        ("512 MiB", 512 * 1024**2),
        ("512Mi", 512 * 1024**2),
        ("  .5 GiB ", 512 * 1024**2),
        ("1 TiB", 1024**4),
        ("0.1 kB", 100),
    ],
)
def test_sizes_mean_what_people_write(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "-1",
        "1 parsec",
        "1.5",
        "0.5 B",
        "1e9",
        "nan",
        "inf",
        "1 2",
        "MiB",
        "１２",
        "1,5 GB",
        "9" * 30,
    ],
)
def test_text_that_is_no_size_is_refused_with_the_text(text):
    with pytest.raises(ValueError, match=r"size|unit|byte") as caught:
        parse_bytes(text)

    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["512m", "1g", "2 t"])
def test_units_with_two_meanings_are_refused_with_both_ways_out(text):
    with pytest.raises(ValueError, match="two meanings.*iB' or '"):
        parse_bytes(text)


@pytest.mark.parametrize("value", [True, False, 1.5, None, b"1 MiB", [1]])
def test_what_is_neither_integer_nor_text_is_no_size(value):
    with pytest.raises(TypeError, match="not a size"):
        parse_bytes(value)


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="-5 is negative"):
        parse_bytes(-5)


def test_any_integer_type_is_a_size():
    class Index:
        def __index__(self):
            return 4096

    assert parse_bytes(Index()) == 4096


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 * 1024**2, "1.5 GiB"),
        (512 * 1024**2, "512 MiB"),
        (1024**2 - 1, "1 MiB"),
        (-3 * 1024, "-3 KiB"),
        (1024**5 * 3, "3 PiB"),
        (1024**6 * 2, "2 EiB"),
    ],
)
def test_bytes_are_shown_in_the_largest_unit_that_fits(n, text):
    assert format_bytes(n) == text


@given(st.integers(0, 2**62))
def test_what_is_shown_reads_back_within_a_twentieth_of_a_unit(n):
    assert abs(parse_bytes(format_bytes(n)) - n) <= max(1, n * 0.05)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.8, 0.8),
        (1.0, 1.0),
        ("80%", 0.8),
        ("100 %", 1.0),
        ("0.5", 0.5),
        (101, 101),
        ("512 MiB", 512 * 1024**2),
    ],
)
def test_a_line_is_a_fraction_or_a_size(value, expected):
    parsed = parse_threshold(value)

    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, 80.0, float("nan"), "0%", "101%", 0, 1, 80, 100, "80", "512m"])
def test_a_line_that_cannot_be_meant_is_refused(value):
    with pytest.raises(ValueError, match=str(value).replace("%", "").split(".")[0]):
        parse_threshold(value)


@pytest.mark.parametrize("value", [True, None, b"80%"])
def test_a_line_of_another_type_is_refused(value):
    with pytest.raises(TypeError):
        parse_threshold(value)


def test_a_lost_percent_sign_is_named():
    with pytest.raises(ValueError, match="80 is 80 bytes; write '80%'"):
        parse_threshold(80)


def test_a_number_of_bytes_that_no_float_holds_can_be_shown():
    assert format_bytes(-(10**400)) == "-8.7e+381 EiB"
