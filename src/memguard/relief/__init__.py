"""
Giving memory back: caches that shrink, garbage collection and the allocator's free pages; measured, throttled, one at a
time.

Nothing here decides when memory is tight.
"""

from memguard.relief._allocator import (
    AllocatorUsage,
    allocator_usage,
    limit_arenas,
    trim,
)
from memguard.relief._holes import Holes
from memguard.relief._relief import Relief, ReliefReport, ReliefStep, Step, default_steps, release_memory
from memguard.relief._shrinking import Shrinkable, Shrinkables, shrinkables
from memguard.relief._tops import Tops, tops
from memguard.sampling import HeapCounts, heap_counts, held_free_bytes

__all__ = [
    "AllocatorUsage",
    "HeapCounts",
    "Holes",
    "Relief",
    "ReliefReport",
    "ReliefStep",
    "Shrinkable",
    "Shrinkables",
    "Step",
    "Tops",
    "allocator_usage",
    "default_steps",
    "heap_counts",
    "held_free_bytes",
    "limit_arenas",
    "release_memory",
    "shrinkables",
    "tops",
    "trim",
]
