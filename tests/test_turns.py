"""
One at a time, whatever comes in between.
"""

from __future__ import annotations

import gc
import os
import threading

import pytest

from memguard.turns import Bell, Claim, Turn

LONG = 30.0


@pytest.fixture
def turn():
    return Turn()


def test_a_turn_is_one_s_until_it_is_given_back(turn):
    first, second = Claim(turn), Claim(turn)

    assert [first.take(), second.take(), turn.taken, turn.taken_here] == [True, False, True, True]
    second.give_back()
    assert turn.taken
    first.give_back()
    first.give_back()
    assert not turn.taken
    assert second.take()


def test_a_claim_that_dies_frees_its_turn(turn):
    claim = Claim(turn)
    claim.take()

    del claim
    gc.collect()

    assert not turn.taken


def test_whoever_has_it_further_down_is_not_waited_for(turn):
    claim = Claim(turn)
    claim.take()

    assert not turn.wait(LONG)


def test_whoever_waits_goes_on_when_another_thread_gives_back(turn):
    claim = Claim(turn)
    claim.take()
    waiting, answers = threading.Barrier(2), []

    def wait():
        waiting.wait(LONG)
        answers.append(turn.wait(LONG))

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(LONG)
    claim.give_back()
    thread.join(LONG)

    assert answers == [True]


def test_a_wait_has_an_end(turn):
    claim = Claim(turn)
    thread = threading.Thread(target=claim.take)
    thread.start()
    thread.join(LONG)

    assert not turn.wait(0)
    assert len(turn._waiting) == 0
    claim.give_back()
    assert turn.wait(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("here", [True, False], ids=["the thread that forks", "another thread"])
def test_in_a_forked_child_only_its_own_thread_can_have_it(turn, here):
    claim = Claim(turn)
    if here:
        claim.take()
    else:
        thread = threading.Thread(target=claim.take)
        thread.start()
        thread.join(LONG)
    child = os.fork()
    if child == 0:
        os._exit(turn.taken)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == here
    claim.give_back()


def test_a_bell_is_heard_by_all_who_wait_and_by_those_who_come_later():
    bell = Bell()
    heard = []
    threads = [threading.Thread(target=lambda: heard.append(bell.wait(LONG))) for _ in range(3)]
    for thread in threads:
        thread.start()

    bell.ring()
    bell.ring()
    for thread in threads:
        thread.join(LONG)

    assert heard == [True] * 3
    assert bell.wait()
    assert bell.wait(1e300)


def test_a_bell_that_nobody_rings_is_waited_for_so_long_and_no_longer():
    assert not Bell().wait(0)
    assert not Bell().wait(-1)
