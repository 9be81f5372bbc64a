from __future__ import annotations

import numbers

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard import AdaptiveBatchSize, Level
from memguard.settings import settings

NORMAL, WARNING, CRITICAL = Level
MIB = 1024**2


def test_the_batch_gives_way_by_level_and_grows_back_after_calm():
    batch = AdaptiveBatchSize()

    assert batch.size == 100
    assert batch.observe(WARNING) == 50
    assert batch.observe(CRITICAL) == 25
    assert batch.observe(WARNING) == 25
    assert [batch.observe(NORMAL) for _ in range(8)] == [25, 25, 25, 50, 50, 50, 50, 100]


def test_a_failed_batch_takes_the_next_smaller_step_down_to_the_last():
    batch = AdaptiveBatchSize((100, 50, 25))

    assert [(batch.failed(), batch.size) for _ in range(3)] == [(True, 50), (True, 25), (False, 25)]


def test_the_environment_sets_the_largest_batch(monkeypatch):
    monkeypatch.setenv("MEMGUARD_BATCH_SIZE", "500")
    settings.cache_clear()

    assert [AdaptiveBatchSize().observe(level) for level in Level] == [500, 250, 125]


@pytest.mark.parametrize("steps", [(), (0,), (25, 50), (50, 50)])
def test_steps_that_do_not_fall_are_refused(steps):
    with pytest.raises(ValueError, match="falling order"):
        AdaptiveBatchSize(steps)


@pytest.mark.parametrize("steps", [(True,), (2.5, 1)])
def test_steps_that_are_no_whole_numbers_are_refused(steps):
    with pytest.raises(TypeError):
        AdaptiveBatchSize(steps)


@given(st.lists(st.sampled_from([*Level, "failed"])), st.sets(st.integers(1, 1000), min_size=1, max_size=6))
def test_the_size_is_always_one_of_the_steps(story, steps):
    ladder = tuple(sorted(steps, reverse=True))
    batch = AdaptiveBatchSize(ladder)
    for step in story:
        if isinstance(step, numbers.Integral):
            batch.observe(step)
        else:
            assert batch.failed() is (batch.size != ladder[-1]) or batch.size == ladder[-1]
        assert batch.size in ladder
        if step is CRITICAL:
            assert batch.size == ladder[-1]


def test_a_batch_size_shows_its_steps():
    assert repr(AdaptiveBatchSize((8, 4))) == "<AdaptiveBatchSize 8 of (8, 4)>"
