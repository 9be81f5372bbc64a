from __future__ import annotations

import sys

import pytest

from memguard.relief import Holes, heap_counts


@pytest.mark.skipif(sys.platform != "linux" or heap_counts() is None, reason="needs glibc's malloc")
def test_holes_are_taken_and_given_back():
    rows = [bytes(2000) for _ in range(2000)]
    pinned = rows[::2]
    del rows
    before = heap_counts()
    holes = Holes()

    taken = holes.take()
    during = heap_counts()
    holes.release()
    holes.release()

    assert taken >= 500
    assert during.used_bytes - before.used_bytes > 1_000_000
    assert heap_counts().used_bytes - before.used_bytes < 500_000
    assert len(pinned) == 1000
