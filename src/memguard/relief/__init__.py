"""
Giving memory back: garbage collection and the allocator's free pages; measured, throttled, one at a time.

Nothing here decides when memory is tight.
"""

from memguard.relief._allocator import held_free_bytes, limit_arenas
from memguard.relief._relief import Relief, ReliefReport, ReliefStep, default_steps, release_memory

__all__ = ["Relief", "ReliefReport", "ReliefStep", "default_steps", "held_free_bytes", "limit_arenas", "release_memory"]
