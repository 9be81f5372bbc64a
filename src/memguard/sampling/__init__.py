"""
What the machine says: the limit that binds, what counts against it, and the peak of a block of code.

Nothing here decides. Linux is read from ``/proc`` and cgroup files; everything else through psutil.
"""

from memguard.sampling._machine import Machine, Sampler, memory_limit, memory_usage
from memguard.sampling._peak import PeakMeasurement, measure_peak

__all__ = ["Machine", "PeakMeasurement", "Sampler", "measure_peak", "memory_limit", "memory_usage"]
