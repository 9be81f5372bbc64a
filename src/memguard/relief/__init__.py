"""
Giving memory back: garbage collection and the allocator's free pages; measured, throttled, one at a time.

Nothing here decides when memory is tight.
"""

from memguard.relief._allocator import (
    AllocatorUsage,
    allocator_usage,
    held_free_bytes,
    limit_arenas,
    resident_free_bytes,
)
from memguard.relief._relief import Relief, ReliefReport, ReliefStep, Step, default_steps, release_memory
from memguard.relief._tops import Tops, tops

__all__ = [
    "AllocatorUsage",
    "Relief",
    "ReliefReport",
    "ReliefStep",
    "Step",
    "Tops",
    "allocator_usage",
    "default_steps",
    "held_free_bytes",
    "limit_arenas",
    "release_memory",
    "resident_free_bytes",
    "tops",
]
