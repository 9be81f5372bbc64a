"""
The kernel's limit, again and again: what holds once must hold 20 times. Long because of the repetition.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memguard.cli._box import make_box

pytestmark = pytest.mark.long("kernel")
MIB = 1024**2
BURST = Path(__file__).parent.parent / "real" / "burst.py"
GROW = """
import memguard
breaker, kept = memguard.default_breaker(), [bytearray(b"x") * (128 << 20)]
try:
    while True:
        breaker.check()
        kept.append(bytearray(b"x") * (1 << 20))
except memguard.MemoryCircuitBreakerError:
    print("refused")
"""


def run(limit, *arguments):
    with make_box(limit, kind="cgroup") as box:
        command = box.command([sys.executable, *map(str, arguments)])
        out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return out.returncode, out.stdout.strip(), box.peak_bytes()


@pytest.mark.parametrize("way", ["reserve", "threads"])
def test_sixty_jobs_that_reserve_are_done_20_times_of_20(way):
    runs = [run(300 * MIB, BURST, way) for _ in range(20)]

    print(way, "peaks in MiB:", sorted(peak // MIB for *_, peak in runs))
    assert [each[:2] for each in runs] == [(0, "60 done")] * 20


def test_a_burst_from_half_the_limit_is_refused_before_it_20_times_of_20():
    runs = [run(256 * MIB, "-c", GROW) for _ in range(20)]

    print("peaks in MiB:", sorted(peak // MIB for *_, peak in runs))
    assert [each[:2] for each in runs] == [(0, "refused")] * 20
