"""
At the end of the interpreter, with daemon threads that are stopped wherever they are, nothing hangs.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import atexit, sys, threading, time
import memguard
from memguard.relief import Relief, default_steps, tops
from memguard.sampling import measure_cheaply
monitor = memguard.MemoryMonitor(breaker=memguard.UNGUARDED, sample_interval=0.001)
relief = Relief(default_steps())

def everything():
    monitor.tick()
    with monitor.track("job"): pass
    with measure_cheaply(), memguard.measure_peak(meter="sampled"), memguard.measure_peak(meter="tracemalloc"): pass
    relief.attempt(lambda: 0)
    tops.give_back()
    monitor.health()

class Late:
    def __del__(self):
        try:
            everything()
        except Exception:  # modules may be half gone
            pass

def work():
    while True: everything()

for _ in range(3): threading.Thread(target=work, daemon=True).start()
started = sys.argv[1] == "started"
if started: monitor.start()
if sys.argv[1] == "atexit": atexit.register(everything)
late = Late()
sys.modules["late"] = Late()
block = measure_cheaply(); block.__enter__()
for _ in range(3): everything()
print("end", flush=True)
"""


@pytest.mark.parametrize("way", ["stopped", "started", "atexit"])
def test_nothing_hangs_at_the_end_of_the_interpreter(way):
    out = subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True, timeout=60, check=False)

    assert out.stdout == "end\n", out.stderr
    assert out.returncode == 0, out.stderr
