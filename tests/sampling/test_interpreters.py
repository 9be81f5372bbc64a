"""
An isolated interpreter beside the main one, with a GIL of its own (Python 3.12 and newer): it may refuse ctypes,
tracemalloc or psutil, and measures all the same.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cachetools
import pytest

import memguard

CODE = """
import os, sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
inside = '''
import sys
sys.path[:0] = %r
import memguard
print(memguard.memory_usage().rss_bytes > 0, memguard.memory_limit().bytes > 0)
print(memguard.allocator_usage().name in ("glibc", "musl", "unknown"), memguard.limit_arenas() in (True, False))
for meter in (None, "tracemalloc", "sampled"):
    with memguard.measure_peak(meter=meter) as peak: pass
    print(peak.meter in ("kernel", "tracemalloc", "sampled"))
print(bool(memguard.release_memory().steps))
monitor = memguard.MemoryMonitor()
with monitor.track("job"): monitor.tick()
print(monitor.health()["operations"]["job"]["count"] == 1)
''' % (sys.path,)
if sys.version_info >= (3, 13):
    failed = interpreters.exec(interpreters.create("isolated"), inside)
else:
    failed = interpreters.run_string(interpreters.create(isolated=True), inside)
if failed is not None:
    print(failed)
sys.stdout.flush()
os._exit(0)
"""


@functools.cache
def pythons() -> list[str]:
    """Return those interpreters here that can make an isolated one."""
    found = []
    names = (sys.executable, "python3.12", "python3.13", "python3.14", "python3.15")
    beside = Path(sys.base_prefix).parent.glob("3.1*/bin/python3")  # as version managers keep them
    for path in dict.fromkeys((*filter(None, map(shutil.which, names)), *map(str, beside))):
        asked = [path, "-c", "import sys; print(sys.version_info >= (3, 12))"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        if said.stdout.strip() == "True":
            found.append(path)
    return found


def test_everything_that_measures_works_in_an_isolated_interpreter():
    if not pythons():
        pytest.skip("no Python here makes isolated interpreters: 3.12 or newer is needed on PATH")
    # Of another Python's packages only what is written in Python can be used, and nothing else is needed.
    places = [str(Path(module.__file__).parent.parent) for module in (memguard, cachetools)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}
    for python in pythons():
        out = subprocess.run([python, "-c", CODE], capture_output=True, text=True, timeout=60, env=env, check=False)

        assert set(out.stdout.split()) == {"True"}, (python, out.stdout, out.stderr)
