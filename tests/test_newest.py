"""
The newest elements of what other threads change.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque

import pytest

from memguard import LRUCache, deep_sizeof
from memguard.newest import newest

SHRINKING = """
import sys
from memguard.attribution._census import _elements
from memguard.newest import newest
from memguard.sizing import deep_sizeof

rows = {{number: number for number in range(100_000)}}

def shrink_at(step):
    left = [step]
    def trace(frame, event, argument):
        if "memguard" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] == 0:  # the same number of elements, at the start of a table of another size
                rows.clear()
                rows.update((number, number) for number in range(10))
        return trace
    return trace

for step in range(1, {steps}):
    rows.update((number, number) for number in range(30_000))
    for number in range(29_990):
        del rows[number]
    sys.settrace(shrink_at(step))
    try:
        {call}
    except RuntimeError:
        pass
    finally:
        sys.settrace(None)
"""


@pytest.mark.parametrize("kind", [list, deque, tuple, dict.fromkeys])
def test_the_newest_come_first(kind):
    assert newest(kind(range(10)), 3) == [9, 8, 7]
    assert newest(kind(range(10)), 6, 2) == [9, 7, 5]
    assert newest(kind(range(3))) == [2, 1, 0]
    assert newest(kind(()), 3) == []


@pytest.mark.parametrize("call", ["newest(rows.values(), 50)", "_elements(rows)", "deep_sizeof(rows)"])
def test_a_dict_that_shrinks_between_any_two_steps_crashes_nothing(call):
    code = SHRINKING.format(steps=40, call=call)
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_a_cache_that_is_looked_at_while_others_clear_it_is_whole():
    cache = LRUCache(max_bytes=10_000, sizeof=lambda _: 100)
    for number in range(1000):
        cache[number] = number
    assert len(cache) == 100
    assert deep_sizeof(dict.fromkeys(range(100_000))) > 0
