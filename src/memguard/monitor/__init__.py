"""
The memory monitor: samples, alerts, leaks, and what each operation costs.

Rooms: the monitor itself, its clockwork (``_clockwork``), operations (``_operations``), readings from inside the
process (``_inside``), samples in a file (``_record``).
"""

from memguard.monitor._monitor import MemoryAlert, MemoryMonitor
from memguard.monitor._operations import OperationStatistics, Tracked
from memguard.monitor._record import read_samples, write_samples

__all__ = [
    "MemoryAlert",
    "MemoryMonitor",
    "OperationStatistics",
    "Tracked",
    "read_samples",
    "write_samples",
]
