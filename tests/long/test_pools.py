"""
Pools of threads whose freed memory stays with the allocator: nobody may wait for ever beside it, nor be killed for it.
Long because of the repetition: the counting mistakes that this found showed in one of thirty runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memguard.cli._box import make_box

pytestmark = pytest.mark.long("pools")
MIB = 1024**2
POOL = Path(__file__).parent.parent / "real" / "pool.py"


def run(size, arenas):
    env = os.environ | ({"MEMGUARD_ARENAS": arenas} if arenas else {})
    with make_box(200 * MIB, kind="cgroup") as box:
        command = box.command([sys.executable, str(POOL), size])
        out = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=env)
        return out.returncode, out.stdout.strip(), box.peak_bytes()


@pytest.mark.parametrize("arenas", [None, "keep"])
@pytest.mark.parametrize(("size", "times"), [("9", 10), ("3", 10), ("random", 30)])
def test_400_jobs_of_40_threads_are_all_done_below_the_limit(size, times, arenas):
    runs = [run(size, arenas) for _ in range(times)]

    print(size, arenas, "peaks in MiB:", sorted(peak // MIB for *_, peak in runs))
    assert [each[:2] for each in runs] == [(0, "400 done")] * times
