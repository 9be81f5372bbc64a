"""
Repeats a call and tells a leak from what fills once.

Counters that only move when something is kept (live blocks of Python's allocator, bytes that malloc has handed out)
stand still over the calls of a function that keeps nothing: two quiet rounds end it. Where they grow, longer rounds
follow: a cache is full at some time, a leak goes on at the same rate.

Rule: what decides is pure (``judge``); the caller makes the calls, so that it may await them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from memguard.attribution import take_snapshot
from memguard.pytest_plugin._block import MemoryFailureError, grown_types
from memguard.relief import heap_counts
from memguard.sampling import memory_usage
from memguard.units import format_bytes

_ROUNDS = 9
"""Each half as long again as the one before: what fills within 50 times *repeat* calls is seen to be full."""

_QUIET_ROUNDS = 2
"""One may be luck: what a small list grows by may come from what malloc keeps for each thread, and counts as in use."""

_LEAST_BLOCKS = 3
_BLOCKS_A_CALL = 0.1
_HEAP_BYTES_A_CALL = 4.0
"""A list that gets one more small number with each call grows by 8 bytes."""
_LEAST_HEAP_BYTES = 256
_RESIDENT_BYTES_A_CALL = 4096.0
_LEAST_RESIDENT_BYTES = 1024**2

_FADED = 0.5
"""Growth has faded when the last round grew by less than this part of the two before it, per call."""


class MemoryLeakError(MemoryFailureError):
    """Memory grows with each call of the test."""

    __module__ = "builtins"


class Counters(NamedTuple):
    """What is kept: blocks of Python's allocator, and bytes of malloc, or resident where malloc does not count."""

    blocks: int
    nbytes: int


class Round(NamedTuple):
    """What a round of *calls* kept."""

    calls: int
    grown: Counters


class Limits(NamedTuple):
    """What a round may keep without being growth."""

    bytes_a_call: float
    least_bytes: int


HEAP = Limits(_HEAP_BYTES_A_CALL, _LEAST_HEAP_BYTES)
RESIDENT = Limits(_RESIDENT_BYTES_A_CALL, _LEAST_RESIDENT_BYTES)


def grows(done: Round, limits: Limits) -> tuple[bool, bool]:
    """Tell whether *done* kept blocks, and bytes, worth a word."""
    return (
        done.grown.blocks >= max(_LEAST_BLOCKS, _BLOCKS_A_CALL * done.calls),
        done.grown.nbytes >= max(limits.least_bytes, limits.bytes_a_call * done.calls),
    )


def judge(rounds: Sequence[Round], limits: Limits = HEAP) -> bool:
    """Tell whether growth persists at the end of *rounds*, in blocks or in bytes: a leak."""
    last = rounds[-3:]
    by_kind = zip(*(grows(each, limits) for each in last), strict=True)
    return any(
        all(grown) and not _fades([each.grown[kind] / each.calls for each in last])
        for kind, grown in enumerate(by_kind)
    )


def _fades(rates: Sequence[float]) -> bool:
    *earlier, last = rates
    return last < _FADED * sum(earlier) / len(earlier)


def read_counters() -> Counters:
    """Return the counters now, after a collection; without one where the test has switched the collector off."""
    if gc.isenabled():
        gc.collect()
    heap = heap_counts()
    nbytes = memory_usage().rss_bytes if heap is None else heap.used_bytes
    return Counters(sys.getallocatedblocks(), nbytes)


def repetitions(what: str, repeat: int, warmup: int) -> Iterator[int]:
    """
    Yield how many calls to make next, until it is settled that nothing leaks.

    Args:
        what: Names the test.
        repeat: Calls of the first round.
        warmup: Calls before it, one of which was made.

    Raises:
        MemoryLeakError: Memory grows with each call.
    """
    yield warmup - 1
    limits = RESIDENT if heap_counts() is None else HEAP
    rounds: list[Round] = []
    calls, quiet, before = repeat, 0, read_counters()
    for _ in range(_ROUNDS):
        yield calls
        after = read_counters()
        grown = Counters(after.blocks - before.blocks, after.nbytes - before.nbytes)
        rounds.append(Round(calls, grown))
        quiet = 0 if any(grows(rounds[-1], limits)) else quiet + 1
        if quiet == _QUIET_ROUNDS:
            return
        calls, before = calls + (calls + 1) // 2, after
    if judge(rounds, limits):
        older = take_snapshot(exact=True)
        yield repeat
        types = grown_types(older, take_snapshot(exact=True), least=max(1, repeat // 2))
        raise MemoryLeakError("\n".join([_told(what, rounds), *types]), pytrace=False)


def _told(what: str, rounds: Sequence[Round]) -> str:
    last = rounds[-1]
    blocks, nbytes = (number / last.calls for number in last.grown)
    native = "malloc" if heap_counts() is not None else "resident size"
    total = sum(each.calls for each in rounds)
    return (
        f"{what} leaks: it keeps {blocks:,.3g} Python blocks and {format_bytes(round(nbytes))} ({native}) a call; "
        f"the limits are {_BLOCKS_A_CALL:g} blocks and {format_bytes(round(_HEAP_BYTES_A_CALL))}. "
        f"That did not fade over {total:,} calls"
    )
