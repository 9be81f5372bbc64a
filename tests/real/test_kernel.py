"""
The kernel's own limit, for real: what it kills, and what memguard keeps alive.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memguard.cli._box import make_box

MIB = 1024**2
BURST = Path(__file__).with_name("burst.py")
FILLING = Path(__file__).with_name("filling.py")
POOL = Path(__file__).with_name("pool.py")


@pytest.fixture
def box():
    try:
        made = make_box(300 * MIB, kind="cgroup")
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    with made:
        yield made


def run(box, *arguments):
    command = box.command([sys.executable, *map(str, arguments)])
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_sixty_jobs_at_once_are_killed_by_the_kernel(box):
    out = run(box, BURST, "plain")

    assert out.returncode == -9
    assert box.oom_kills()


@pytest.mark.parametrize("way", ["reserve", "threads"])
def test_sixty_jobs_that_reserve_are_all_done_below_the_limit(box, way):
    out = run(box, BURST, way)

    assert (out.returncode, out.stdout.strip()) == (0, "60 done"), out.stderr
    assert box.oom_kills() == 0
    assert box.peak_bytes() < 300 * MIB


def test_jobs_of_40_threads_do_not_wait_for_ever_beside_memory_that_the_allocator_keeps(box):
    out = run(box, POOL, "9")

    assert (out.returncode, out.stdout.strip()) == (0, "400 done"), out.stderr
    assert box.oom_kills() == 0


@pytest.mark.parametrize("way", ["reserve", "plain", "threads"])
def test_a_cache_whose_bound_is_far_above_the_limit_gives_way(box, way):
    out = run(box, FILLING, way, 256 * 1024, 600 * MIB)

    assert (out.returncode, out.stdout.split(",")[0]) == (0, "refused 0"), out.stderr
    assert box.oom_kills() == 0


def test_a_burst_of_allocations_is_refused_before_the_limit(box):
    code = """
import memguard
breaker, kept = memguard.default_breaker(), []
try:
    while True:
        breaker.check()
        block = bytearray(1024**2)
        block[::4096] = b"x" * 256
        kept.append(block)
except memguard.MemoryCircuitBreakerError as error:
    print("refused", error.usage.fraction >= 0.8)
"""
    out = run(box, "-c", code)

    assert out.stdout.strip() == "refused True", out.stderr


def test_the_limit_that_the_kernel_enforces_is_the_one_that_is_seen(box):
    out = run(box, "-c", "import memguard; print(memguard.memory_limit().bytes, memguard.memory_usage().source)")

    assert out.stdout.startswith(f"{300 * MIB} cgroup v"), out.stderr
    assert "memguard-box" in out.stdout
