"""
What grew: the kind of memory, the types of objects, the largest containers, and the lines that allocate.

Rooms, by what they cost: counters and the kind of growth (``_parts``, a tenth of a millisecond), types and containers
(``_census``, tens of milliseconds), lines of code (``_sites``, a bounded window of tracemalloc), snapshots and their
comparison (``_snapshot``), and reports that come by themselves or by a signal (``_reporter``).
"""

from memguard.attribution._census import Container
from memguard.attribution._parts import GrowthKind, MemoryParts
from memguard.attribution._reporter import LeakReporter, report_on_signal
from memguard.attribution._sites import Site
from memguard.attribution._snapshot import ContainerGrowth, GrowthReport, Snapshot, TypeGrowth, take_snapshot

__all__ = [
    "Container",
    "ContainerGrowth",
    "GrowthKind",
    "GrowthReport",
    "LeakReporter",
    "MemoryParts",
    "Site",
    "Snapshot",
    "TypeGrowth",
    "report_on_signal",
    "take_snapshot",
]
