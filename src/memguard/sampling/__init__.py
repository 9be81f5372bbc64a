"""
What the machine says: the limit that binds, what counts against it, and the peak of a block of code.

Nothing here decides. Linux is read from ``/proc`` and cgroup files; everything else through psutil.
"""

from memguard.sampling._cgroup import LevelFiles, Place, own_place
from memguard.sampling._heap import HeapCounts, glibc, heap_counts, held_free_bytes, preloaded
from memguard.sampling._machine import Machine, Sampler, memory_limit, memory_usage
from memguard.sampling._peak import PeakMeasurement, measure_cheaply, measure_peak
from memguard.sampling._procfs import resident_bytes, status_bytes

__all__ = [
    "HeapCounts",
    "LevelFiles",
    "Machine",
    "PeakMeasurement",
    "Place",
    "Sampler",
    "glibc",
    "heap_counts",
    "held_free_bytes",
    "measure_cheaply",
    "measure_peak",
    "memory_limit",
    "memory_usage",
    "own_place",
    "preloaded",
    "resident_bytes",
    "status_bytes",
]
